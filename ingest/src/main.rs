//! The upload server as a program of its own.

use std::process::ExitCode;

use shared::config::IngestConfig;
use shared::foundation::Foundation;
use shared::{run, shutdown};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    run::service::<IngestConfig, _>("ingest", "Ferry's upload server: takes files in over TUS 1.0.", serve)
}

async fn serve(config: IngestConfig) -> Result<(), run::Failure> {
    let foundation = Foundation::open(&config.common, config.durability)?;
    let running = ingest::start(config, &foundation, Vec::new())?;
    println!("ready: {}", running.upload_url());
    if let Some(addr) = running.admin_addr() {
        println!("admin: http://{addr}/");
    }
    shutdown::on_signal(CancellationToken::new()).await?;
    running.stop().await;
    Ok(())
}
