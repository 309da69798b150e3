//! The tool as it is run, on loads so small that they measure nothing: it must not rot between two measurements.
//!
//! Ferry's programs are taken from beside the tool: build them first, `cargo build --workspace --bins`.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Runs the tool on tmpfs with loads divided by 1000.
fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--any-build", "--rounds", "1", "--shrink", "1000"])
        .args(args)
        .output()
        .expect("start the tool")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder in memory, named so that what a broken test leaves can be told from other people's.
fn in_memory() -> TempDir {
    tempfile::Builder::new()
        .prefix("ferry-bench-test-")
        .tempdir_in("/dev/shm")
        .expect("make a folder in memory")
}

/// Programs that stand in for Ferry's: scripts in `folder`.
fn script(folder: &Path, name: &str, lines: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).expect("write a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it a program");
}

#[test]
fn every_server_is_measured_on_every_row_and_nothing_is_left_behind() {
    let folder = in_memory();
    let output = bench(&["--on", "tmpfs", "--tmpfs", folder.path().to_str().unwrap()]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "is Ferry built beside the tool?\n{stderr}");
    assert!(stdout.contains("Ferry: ") && stdout.contains("Linux "), "{stdout}");
    for (server, rows) in [
        ("null: discarding", 4),
        ("null: writing ", 4),
        ("null: writing, syncing ", 4),
        ("ingest, DURABILITY=none", 4),
        ("ingest, DURABILITY=finish", 4),
        ("null: writing, syncing, copying twice", 2),
        ("ferry up", 2),
    ] {
        let found = stdout
            .lines()
            .filter(|line| line.contains(&format!("| {server}")))
            .count();
        assert_eq!(found, rows, "{server}\n{stdout}");
    }
    for (line, cells) in stdout.lines().filter(|line| line.contains(" ±")).map(cells) {
        let rate: f64 = cells[3].split(' ').next().unwrap().parse().unwrap();
        assert!(rate > 0.0, "{line}");
        let is_ceiling = cells[2].starts_with("null:");
        assert_eq!(cells[4].is_empty(), is_ceiling, "{line}");
        assert!(cells[7].ends_with(" MiB") && cells[7] != "0.0 MiB", "{line}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "files are left");
}

fn cells(line: &str) -> (&str, Vec<&str>) {
    (line, line.trim_matches('|').split('|').map(str::trim).collect())
}

#[test]
fn a_server_that_does_not_start_ends_the_run_with_its_log_and_no_table() {
    let (programs, files) = (tempfile::tempdir().unwrap(), in_memory());
    script(
        programs.path(),
        "ingest",
        "[ \"$1\" = --version ] && echo ingest 0 || { echo out of luck >&2; exit 3; }",
    );
    let output = bench(&[
        "--on",
        "tmpfs",
        "--only",
        "create-with",
        "--tmpfs",
        files.path().to_str().unwrap(),
        "--programs",
        programs.path().to_str().unwrap(),
    ]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("before it was ready") && stderr.contains("out of luck"),
        "{stderr}"
    );
    assert!(!stdout.contains('|'), "{stdout}");
    assert_eq!(fs::read_dir(files.path()).unwrap().count(), 0, "files are left");
}

#[test]
fn a_folder_that_is_not_in_memory_is_refused_as_such() {
    // /proc is on no disk and not in memory.
    let output = bench(&["--on", "tmpfs", "--tmpfs", "/proc"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("--tmpfs /proc is on proc"),
        "{}",
        text(&output.stderr)
    );
}
