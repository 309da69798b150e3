//! The copy worker as a program of its own.

use std::process::ExitCode;

use shared::config::{CopierConfig, Durability};
use shared::foundation::Foundation;
use shared::{run, shutdown};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    run::service::<CopierConfig, _>("copier", "Ferry's copy worker: delivers verified copies.", serve)
}

async fn serve(config: CopierConfig) -> Result<(), run::Failure> {
    // Durability is about raw data, which ingest writes: outcomes ask for theirs one by one.
    let foundation = Foundation::open(&config.common, Durability::Finish)?;
    let running = copier::start(config, &foundation)?;
    if let Some(addr) = running.admin_addr() {
        println!("admin: http://{addr}/");
    }
    shutdown::on_signal(CancellationToken::new()).await?;
    running.stop().await;
    Ok(())
}
