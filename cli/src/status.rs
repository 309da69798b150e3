//! `ferry status ID|URL`: what the server knows of an upload, for people or as it came.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use indicatif::HumanBytes;
use shared::upload::UploadId;
use url::Url;

use crate::http::{self, Verdict, printable};
use crate::info::{self, Delivery, FILE_NAME_KEYS, Info};
use crate::{DONE, FAILED, USAGE, args, chain};

/// Arguments of `ferry status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// The upload: its id, or its URL as `ferry send` printed it
    #[arg(value_name = "ID|URL")]
    upload: String,
    /// Where the upload was sent to, if it is given by its id
    #[arg(long, value_name = "URL", env = "FERRY_URL", hide_env_values = true)]
    #[arg(default_value = args::DEFAULT_COLLECTION, value_parser = args::collection)]
    to: Url,
    /// Print the server's answer as it came, as JSON
    #[arg(long)]
    json: bool,
}

/// Prints what is known of the upload; the exit code.
pub(crate) async fn run(args: StatusArgs) -> u8 {
    let Some(url) = info_url(&args.upload, &args.to) else {
        eprintln!(
            "error: `{}` is neither an upload id nor an upload's URL",
            printable(&args.upload)
        );
        return USAGE;
    };
    let http = match http::client() {
        Ok(http) => http,
        Err(error) => {
            eprintln!("error: cannot set up HTTP: {}", chain(&error));
            return FAILED;
        }
    };
    match info::read(&http, &url).await {
        Ok((info, text)) => {
            let text = if args.json {
                text.trim_end().to_owned()
            } else {
                describe(&info)
            };
            match writeln!(io::stdout(), "{}", text.trim_end()) {
                Ok(()) => DONE,
                Err(error) => {
                    eprintln!("error: cannot print the answer: {error}");
                    FAILED
                }
            }
        }
        Err(error) if error.verdict() == Verdict::Gone => {
            eprintln!("error: no such upload: {}", printable(&args.upload));
            FAILED
        }
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            FAILED
        }
    }
}

/// Where `/info` of the upload is: `upload` is a URL, or an id in the collection `to`.
fn info_url(upload: &str, to: &Url) -> Option<Url> {
    if let Ok(id) = upload.parse::<UploadId>() {
        let mut url = to.clone();
        url.set_path(&format!("{}/{id}", to.path().trim_end_matches('/')));
        return info::url_of(&url);
    }
    info::url_of(&args::collection(upload).ok()?)
}

/// The answer for people: a line per fact, then the targets.
fn describe(info: &Info) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{name:<10}{}", printable(value)).expect("writing to a String cannot fail");
    };
    let file = FILE_NAME_KEYS.iter().find_map(|key| info.manifest.get(*key));
    if let Some(name) = file.and_then(|value| value.as_str()) {
        line("file", name);
    }
    if let Some(id) = info.manifest.get("upload_id").and_then(|value| value.as_str()) {
        line("upload", id);
    }
    line("state", &info.upload_status.status);
    if let Some(file) = &info.file_info {
        line(
            "size",
            &format!("{} bytes ({})", file.size_bytes, HumanBytes(file.size_bytes)),
        );
    }
    if let Some(created) = info
        .manifest
        .get("dex_ingest_datetime")
        .and_then(|value| value.as_str())
    {
        line("created", created);
    }
    line("received", &info.upload_status.chunk_received_at);
    if let Some(file) = &info.file_info {
        line("changed", &file.updated_at);
    }
    if let Some(checksum) = &info.checksum {
        line("checksum", checksum);
    }
    match info.deliveries.as_deref() {
        None | Some([]) => line("targets", "none yet"),
        Some(deliveries) => {
            for delivery in deliveries {
                line("target", &target(delivery));
                for issue in delivery.issues() {
                    line("", &format!("  {}: {}", issue.level, issue.message));
                }
            }
        }
    }
    text
}

/// One target in one line.
fn target(delivery: &Delivery) -> String {
    let mut parts = vec![format!("{} {}", delivery.name, delivery.status)];
    if !delivery.location.is_empty() {
        parts.push(delivery.location.clone());
    }
    if !delivery.delivered_at.is_empty() {
        parts.push(format!("at {}", delivery.delivered_at));
    }
    if let Some(attempts) = delivery.attempts {
        parts.push(format!("attempts {attempts}"));
    }
    if let Some(at) = &delivery.next_attempt_at {
        parts.push(format!("next try {at}"));
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90";

    fn info_of(upload: &str, to: &str) -> Option<String> {
        info_url(upload, &to.parse().unwrap()).map(String::from)
    }

    #[test]
    fn an_upload_is_found_by_id_and_by_url() {
        let expected = Some(format!("http://h/upload/info/{ID}"));
        assert_eq!(info_of(ID, "http://h/upload/files/"), expected);
        assert_eq!(info_of(ID, "http://h/upload/files"), expected);
        assert_eq!(
            info_of(&format!("http://h/upload/files/{ID}"), args::DEFAULT_COLLECTION),
            expected
        );
        for bad in ["", "../../etc/passwd", "file:///etc/passwd", "ftp://h/files/x"] {
            assert_eq!(info_of(bad, args::DEFAULT_COLLECTION), None, "{bad}");
        }
    }

    #[test]
    fn people_see_every_target_and_what_holds_it_up() {
        let info = serde_json::from_str(
            r#"{"manifest":{"received_filename":"r.csv","filename":"a\u001b.csv"},
                "file_info":{"updated_at":"2024-03-07T05:09:12Z","size_bytes":2048},
                "upload_status":{"status":"Complete","chunk_received_at":"2024-03-07T05:09:11Z"},
                "deliveries":[{"status":"SUCCESS","name":"dex","location":"/d/a.csv","delivered_at":"2024-03-07T05:09:20Z","issues":null},
                              {"status":"PENDING","name":"edav","location":"","delivered_at":"","attempts":2,
                               "next_attempt_at":"2024-03-07T05:10:00Z","issues":[{"level":"ERROR","message":"no route"}]}]}"#,
        )
        .unwrap();
        assert_eq!(
            describe(&info),
            "file      a\u{fffd}.csv\n\
             state     Complete\n\
             size      2048 bytes (2.00 KiB)\n\
             received  2024-03-07T05:09:11Z\n\
             changed   2024-03-07T05:09:12Z\n\
             target    dex SUCCESS  /d/a.csv  at 2024-03-07T05:09:20Z\n\
             target    edav PENDING  attempts 2  next try 2024-03-07T05:10:00Z\n          \
               \u{20} ERROR: no route\n"
        );
    }
}
