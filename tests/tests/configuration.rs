//! A wrong configuration stops the start with every problem in one go, and nothing is half started.
//! Spec: DESIGN.md, "Contracts other programs rely on"; faults.md row 77; security.md rows 29, 44.

use std::time::Duration;

use tests::site::{Program, Site};

const LIMIT: Duration = Duration::from_secs(20);

fn up() -> Program {
    Program::new("ferry").arg("up").arg("--listen").arg("127.0.0.1:0")
}

#[tokio::test]
async fn five_mistakes_are_told_in_one_go() {
    let mistakes = [
        ("MAX_UPLOAD_SIZE", "lots"),
        ("DURABILITY", "sometimes"),
        ("CONCURRENCY", "-3"),
        ("SHUTDOWN_GRACE", "soon"),
        ("REPORT_SINKS", "carrier-pigeon"),
    ];
    let wrong = mistakes
        .iter()
        .fold(up(), |program, (name, value)| program.env(name, value));
    for program in [wrong.clone(), wrong.arg("--config-check")] {
        let ended = program.run(LIMIT).await;
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        for (name, value) in mistakes {
            let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.contains(name)).collect();
            assert_eq!(lines.len(), 1, "{name} once: {}", ended.stderr);
            assert!(lines[0].contains(value), "with its value: {}", lines[0]);
        }
        assert_eq!(ended.stdout, "", "not ready");
        assert!(ended.left.is_empty(), "half started: {:?}", ended.left);
    }
}

#[tokio::test]
async fn what_is_missing_is_told_all_at_once() {
    for name in ["ingest", "copier"] {
        let ended = Program::new(name).run(LIMIT).await;
        assert_eq!(ended.status.code(), Some(2), "{name}: {ended:?}");
        for variable in ["RAW_STORE", "RECORDS", "DEX_STORE", "EDAV_STORE"] {
            assert!(ended.stderr.contains(variable), "{name}, {variable}: {}", ended.stderr);
        }
        assert!(ended.left.is_empty(), "half started: {:?}", ended.left);
    }
}

/// A setting of a later version is never ignored in silence.
#[tokio::test]
async fn what_this_version_does_not_have_is_refused() {
    let later = [
        ("BUS", "amqp://127.0.0.1"),
        ("RECORDS", "objects"),
        ("DEX_STORE", "s3://bucket/prefix"),
        ("REDIS_URL", "redis://127.0.0.1"),
        ("UPLOAD_CONFIG_PATH", "/configs"),
    ];
    let program = later
        .iter()
        .fold(up(), |program, (name, value)| program.env(name, value));
    let ended = program.run(LIMIT).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    for (name, _) in later {
        assert!(ended.stderr.contains(name), "{name}: {}", ended.stderr);
    }
}

/// Everybody may upload where there is no authorization: only this machine, or whoever said so in so many words.
#[tokio::test]
async fn an_open_listener_needs_an_explicit_word() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let open = Program::new("ferry").arg("up").arg("--listen").arg(address);
        let ended = open.run(LIMIT).await;
        assert_eq!(ended.status.code(), Some(2), "{address}: {ended:?}");
        assert!(ended.stderr.contains("LISTEN"), "{}", ended.stderr);
        assert!(ended.stderr.contains("AUTH=none"), "says what to do: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "not ready");
    }
    let site = Site::build().listen("0.0.0.0:0").env("AUTH", "none").start().await;
    assert!(site.addr().ip().is_unspecified(), "{}", site.addr());
    assert!(
        site.log().contains("authorization is off"),
        "a warning on every start: {}",
        site.log()
    );
}

/// `--config-check` prints what holds, starts nothing, and shows no secret.
#[tokio::test]
async fn a_good_configuration_is_printed_and_nothing_is_started() {
    let program = up()
        .arg("--config-check")
        .env("MAX_UPLOAD_SIZE", "8GiB")
        .env("SHUTDOWN_GRACE", "45s");
    let ended = program.run(LIMIT).await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    for name in ["MAX_UPLOAD_SIZE", "SHUTDOWN_GRACE", "RAW_STORE", "CONCURRENCY"] {
        assert!(ended.stdout.contains(name), "{name}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("ready:"), "{}", ended.stdout);
    assert!(ended.left.is_empty(), "started: {:?}", ended.left);
}

#[tokio::test]
async fn every_program_tells_what_it_is_and_what_it_reads() {
    for name in ["ferry", "ingest", "copier"] {
        let version = Program::new(name).arg("--version").run(LIMIT).await;
        assert_eq!(version.status.code(), Some(0), "{version:?}");
        assert!(version.stdout.starts_with(name), "{}", version.stdout);
        let help = Program::new(name).arg("--help").run(LIMIT).await;
        assert_eq!(help.status.code(), Some(0), "{help:?}");
        assert!(!help.stdout.is_empty());
    }
    for (program, variable) in [
        (Program::new("ingest"), "MAX_UPLOAD_SIZE"),
        (Program::new("copier"), "RETRY_DELAYS"),
    ] {
        let help = program.arg("--help").run(LIMIT).await;
        assert!(help.stdout.contains(variable), "{}", help.stdout);
    }
}

/// Row 77: folders that cannot be written and an address in use are told together, with nothing made on disk, by each
/// of the programs.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn unusable_folders_and_addresses_are_told_in_one_go_and_nothing_is_made() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mounts = std::sync::Arc::new(tests::mounts::Mounts::new());
    // Even root cannot write to it.
    let read_only = folder.path().join("read-only");
    mounts.tmpfs(&read_only, "ro");
    let blocked = folder.path().join("a-file");
    std::fs::write(&blocked, "no folder").expect("make a file");
    let good = folder.path().join("good");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    let taken = taken
        .local_addr()
        .map(|address| (taken, address.to_string()))
        .expect("its address");
    let url = |path: std::path::PathBuf| format!("file://{}", path.display());
    let settings = [
        ("RAW_STORE", url(good.join("raw"))),
        ("DEX_STORE", url(read_only.join("dex"))),
        ("EDAV_STORE", url(blocked.join("edav"))),
        ("RECORDS", format!("sqlite:{}", read_only.join("ferry.db").display())),
        ("REPORT_SINKS", "jsonl".to_owned()),
        (
            "REPORT_JSONL_PATH",
            read_only.join("reports.jsonl").display().to_string(),
        ),
        ("LISTEN", taken.1.clone()),
        ("ADMIN_LISTEN", taken.1.clone()),
    ];
    let targets = ["DEX_STORE", "EDAV_STORE"];
    let both = ["RECORDS", "REPORT_JSONL_PATH"];
    for (program, told) in [
        (
            Program::new("ferry").arg("up"),
            [&targets[..], &both, &["LISTEN"]].concat(),
        ),
        (Program::new("ingest"), [&both[..], &["LISTEN"]].concat()),
        (
            Program::new("copier"),
            [&targets[..], &both, &["ADMIN_LISTEN"]].concat(),
        ),
    ] {
        let mut program = program.mounts(mounts.clone());
        for (name, value) in &settings {
            let admin = *name == "ADMIN_LISTEN" && !told.contains(name);
            program = program.env(name, if admin { "off" } else { value });
        }
        let ended = program.run(LIMIT).await;
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert_eq!(lines.len(), told.len(), "{told:?}: {lines:#?}");
        for name in told {
            assert!(
                lines.iter().any(|line| line.starts_with(&format!("{name}: "))),
                "{name}: {lines:#?}"
            );
        }
        assert_eq!(ended.stdout, "", "not ready");
        assert!(!good.exists(), "made: {}", good.display());
    }
    // The raw store alone, too: a folder above it is a file.
    let ended = up().env("RAW_STORE", &url(blocked.join("raw"))).run(LIMIT).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.starts_with("RAW_STORE: "), "{}", ended.stderr);
    assert!(ended.left.is_empty(), "half started: {:?}", ended.left);
    // What is no value at all hides nothing else.
    let program = up().env("LOG_FORMAT", "xml");
    let ended = program.env("EDAV_STORE", &url(blocked.join("edav"))).run(LIMIT).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    for name in ["LOG_FORMAT=", "EDAV_STORE: "] {
        assert!(
            ended.stderr.lines().any(|line| line.starts_with(name)),
            "{}",
            ended.stderr
        );
    }
    // Reports among the records would be the end of either.
    let file = folder.path().join("one-file").display().to_string();
    let program = up()
        .env("RECORDS", &format!("sqlite:{file}"))
        .env("REPORT_JSONL_PATH", &file);
    let ended = program.run(LIMIT).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.starts_with("REPORT_JSONL_PATH: "), "{}", ended.stderr);
}
