//! `ferry up`: both services in one process, with records and bus in one file. Spec: DESIGN.md, "Binaries".

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use shared::config::{Config as _, UpConfig, environment, layered, up_defaults};
use shared::foundation::Foundation;
use shared::{run, shutdown};
use tokio_util::sync::CancellationToken;

/// What `ferry up` takes on the command line. Everything else is read from the environment.
#[derive(Debug, Args)]
#[command(after_help = settings())]
pub(crate) struct UpArgs {
    /// Folder for uploads, copies, records and reports; made if missing
    #[arg(long, value_name = "DIR", default_value = "./ferry-data")]
    data: PathBuf,
    /// Where uploads are accepted; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Routing file (deliver.yml); not in this version
    #[arg(long, value_name = "FILE")]
    routes: Option<PathBuf>,
    /// Print the effective configuration and exit: 0, or 2 with every problem
    #[arg(long)]
    config_check: bool,
}

/// Runs until SIGTERM or Ctrl-C. Exit code 0 after an orderly stop, 2 if it could not start.
pub(crate) fn run(args: &UpArgs) -> ExitCode {
    let defaults = match up_defaults(&args.data) {
        Ok(defaults) => defaults,
        Err(error) => {
            eprintln!("--data {}: {error}", args.data.display());
            return ExitCode::from(crate::USAGE);
        }
    };
    let mut flags = Vec::new();
    if let Some(listen) = args.listen {
        flags.push(("LISTEN", listen.to_string()));
    }
    if let Some(routes) = &args.routes {
        flags.push(("ROUTES_FILE", routes.display().to_string()));
    }
    let lookup = layered(&flags, &environment);
    run::program(&lookup, &defaults, args.config_check, serve)
}

async fn serve(config: UpConfig) -> Result<(), run::Failure> {
    let foundation = Foundation::open(&config.ingest.common, config.ingest.durability)?;
    let copier = copier::start(config.copier, &foundation)?;
    let ingest = match ingest::start(config.ingest, &foundation, copier.checks()) {
        Ok(ingest) => ingest,
        Err(error) => {
            copier.stop().await;
            return Err(error.into());
        }
    };
    println!("ready: {}", ingest.upload_url());
    if let Some(addr) = ingest.admin_addr() {
        println!("admin: http://{addr}/");
    }
    shutdown::on_signal(CancellationToken::new()).await?;
    // Side by side: both have the same grace time.
    tokio::join!(ingest.stop(), copier.stop());
    Ok(())
}

/// The part of `--help` about the environment, with the defaults of the default data folder.
fn settings() -> String {
    let defaults = up_defaults(std::path::Path::new("./ferry-data")).unwrap_or_default();
    format!(
        "Everything else is set by the environment:\n\n{}",
        UpConfig::help(&defaults)
    )
}
