//! `ferry redrive`: sends failed deliveries again, from the records. Spec: DESIGN.md, "Retry"; core.md §1, "Run".

use std::collections::HashSet;
use std::path::PathBuf;

use clap::Args;
use shared::config::{Config as _, Durability, RecordsUrl, UpConfig, environment, up_defaults};
use shared::foundation::Foundation;
use shared::message::Source;
use shared::outbox::{OutboxError, Redrive};
use shared::upload::UploadId;

use crate::{DONE, FAILED, USAGE, chain};

/// Deliveries read at once.
const PAGE: usize = 500;

/// What `ferry redrive` takes on the command line.
#[derive(Debug, Args)]
pub(crate) struct RedriveArgs {
    /// Only this target
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Only this upload
    #[arg(long, value_name = "ID")]
    upload: Option<UploadId>,
    /// Tell what would be sent again, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// The data folder that `ferry up` works in; RECORDS in the environment wins
    #[arg(long, value_name = "DIR", default_value = "./ferry-data")]
    data: PathBuf,
}

/// Opens a new run for every failed delivery that is meant. A running `ferry up` notices at once; without one they
/// are done at the next start. Prints a line per delivery.
pub(crate) async fn run(args: RedriveArgs) -> u8 {
    let config = match up_defaults(&args.data).map(|defaults| UpConfig::read(&environment, &defaults)) {
        Ok(Ok(config)) => config,
        Ok(Err(problems)) => {
            eprintln!("{problems}");
            return USAGE;
        }
        Err(error) => {
            eprintln!("--data {}: {error}", args.data.display());
            return USAGE;
        }
    };
    let RecordsUrl::Sqlite(path) = &config.ingest.common.records;
    if !path.exists() {
        eprintln!(
            "there are no records at {}: name the folder of `ferry up` with --data",
            path.display()
        );
        return USAGE;
    }
    let foundation = match Foundation::open(&config.ingest.common, Durability::Finish) {
        Ok(foundation) => foundation,
        Err(error) => {
            eprintln!("{}", chain(&error));
            return USAGE;
        }
    };
    match redrive(&args, &foundation).await {
        Ok(0) => {
            println!("no failed deliveries");
            DONE
        }
        Ok(_) => DONE,
        Err(error) => {
            eprintln!("{}", chain(&error));
            FAILED
        }
    }
}

/// Answers how many failed deliveries were found.
async fn redrive(args: &RedriveArgs, foundation: &Foundation) -> Result<usize, OutboxError> {
    let Foundation {
        records, bus, outbox, ..
    } = foundation;
    let again = Redrive::new(records.clone(), bus.clone(), outbox.clone(), Source::new("ferry"));
    let (mut found, mut sent, mut after) = (0, HashSet::new(), None);
    loop {
        let page = records.failed_deliveries(args.target.as_deref(), after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.upload_id);
        for delivery in page
            .iter()
            .filter(|delivery| args.upload.is_none_or(|only| only == delivery.upload_id))
        {
            found += 1;
            let (id, target) = (delivery.upload_id, &delivery.to.target);
            let cause = delivery
                .issues
                .first()
                .map_or("", |issue| issue.message.as_str())
                .escape_debug();
            if args.dry_run {
                println!("{id}  {target}  would be sent again: {cause}");
            } else if again.delivery(delivery).await? {
                sent.insert((id, target.clone()));
                println!("{id}  {target}  sent again: {cause}");
            } else {
                println!("{id}  {target}  left alone: deleted, or not failed any more");
            }
        }
    }
    if !sent.is_empty() {
        again.forget(&sent).await?;
    }
    Ok(found)
}
