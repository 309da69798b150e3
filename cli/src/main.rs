//! `ferry`: Ferry on one machine, and the tools of its users. `up` runs both services in one process, `redrive`
//! sends again what was given up; `send` takes files to a server and survives interruptions, `status` tells what
//! became of an upload.
//!
//! ```text
//!  files ──► send ──TUS──► up (ingest ──► copier) ──► targets
//!              └─ --wait ──► /info ◄── status   └── redrive
//! ```

mod args;
mod http;
mod info;
mod redrive;
mod retry;
mod send;
mod status;
mod up;

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything went well.
const DONE: u8 = 0;
/// Some file was not sent or not delivered, or an upload was not found.
const FAILED: u8 = 1;
/// The command line asks for something that cannot be done; nothing was sent.
const USAGE: u8 = 2;
/// Ended by Ctrl-C or SIGTERM, as shells count it.
const INTERRUPTED: u8 = 130;

/// Takes health data files in, delivers verified copies, and reports every outcome.
#[derive(Debug, Parser)]
#[command(name = "ferry", version = shared::build::version())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the upload server and the copier on this machine, with no broker and no cloud
    ///
    /// Prints `ready: URL` when it accepts uploads. Exit code: 0 stopped by SIGTERM or Ctrl-C, 2 not started.
    Up(up::UpArgs),
    /// Send failed deliveries again
    ///
    /// Exit code: 0 done, or nothing to do; 1 something could not be sent again; 2 wrong usage.
    Redrive(redrive::RedriveArgs),
    /// Send files; the same command again goes on where it was interrupted
    ///
    /// Prints one line per file that was sent: its upload URL, two spaces, the file; with --wait also where each
    /// target has it. Exit code: 0 all good, 1 a file failed, 2 wrong usage, 130 interrupted.
    Send(send::SendArgs),
    /// Tell what is known of an upload
    ///
    /// Exit code: 0 found, 1 not found or no answer, 2 wrong usage.
    Status(status::StatusArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Up(args) => up::run(&args),
        Command::Redrive(args) => client(redrive::run(args)),
        Command::Send(args) => client(send::run(args)),
        Command::Status(args) => client(status::run(args)),
    }
}

/// Runs a command that ends by itself.
fn client(command: impl Future<Output = u8>) -> ExitCode {
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => ExitCode::from(runtime.block_on(command)),
        Err(error) => {
            eprintln!("no runtime: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.contains(&part) {
            write!(text, ": {part}").expect("writing to a String cannot fail");
        }
        cause = error.source();
    }
    text
}
