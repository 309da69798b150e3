//! What a machine runs out of, or loses: disk, folders, descriptors, records, memory. faults.md rows 11, 13,
//! 15, 17, 22, 78.
#![cfg(target_os = "linux")]

#[path = "resources/descriptors.rs"]
mod descriptors;
#[path = "resources/disk_full.rs"]
mod disk_full;
#[path = "resources/memory.rs"]
mod memory;
#[path = "resources/orphans.rs"]
mod orphans;
#[path = "resources/raw_folder.rs"]
mod raw_folder;
#[path = "resources/records.rs"]
mod records;

use std::time::Duration;

use serde_json::Value;
use tests::site::Site;
use tests::wait::eventually;

const MIB: usize = 1024 * 1024;
/// Rule 7: what was down works again within this time, without a restart.
const RECOVERY: Duration = Duration::from_secs(60);

/// Status of `/health` and its body.
async fn health(site: &Site) -> (u16, Value) {
    let answer = site.client().send("GET", &site.url("/health"), &[], "").await;
    let answer = answer.expect("GET /health");
    let body = serde_json::from_slice(&answer.body).expect("JSON");
    (answer.status, body)
}

/// Waits until `/health` says `status` of `service`, with this code for the whole.
async fn health_says(site: &Site, service: &str, status: &str, code: u16) {
    eventually(&format!("{service} is {status}"), RECOVERY, || async {
        let (found, body) = health(site).await;
        let services = body["services"].as_array().expect("services");
        let told = services
            .iter()
            .find(|told| told["service"] == service)
            .expect("the service is listed");
        (told["status"] == status && found == code).then_some(())
    })
    .await;
}
