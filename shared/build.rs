//! Puts the commit and the build date into the library, for `--version`, `/version` and the reports.
use std::process::Command;

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=FERRY_GIT_SHA");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    if let Some(head) = output("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    // A build from an archive has no repository: it names its commit by the variable, or none.
    let sha = std::env::var("FERRY_GIT_SHA")
        .ok()
        .or_else(|| output("git", &["rev-parse", "--short", "HEAD"]));
    println!("cargo::rustc-env=FERRY_GIT_SHA={}", sha.unwrap_or_default());
    // The commit's own date keeps builds of one commit alike.
    let date = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|seconds| output("date", &["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%d"]))
        .or_else(|| output("date", &["-u", "+%Y-%m-%d"]));
    println!("cargo::rustc-env=FERRY_BUILD_DATE={}", date.unwrap_or_default());
}
