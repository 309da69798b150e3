//! What was built: release, commit and date.

/// Release of this build, e.g. `0.1.0`.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// Short id of the commit, or empty if it was not known at build time.
pub const GIT_SHA: &str = env!("FERRY_GIT_SHA");
/// Day of the build, `YYYY-MM-DD`, UTC.
pub const DATE: &str = env!("FERRY_BUILD_DATE");
/// Where the source is published; empty until the build says so.
pub const REPOSITORY: &str = match option_env!("FERRY_REPOSITORY") {
    Some(url) => url,
    None => "",
};

/// The text behind `--version`: release, commit and date of the build.
#[must_use]
pub fn version() -> &'static str {
    const SHA: &str = if GIT_SHA.is_empty() { "unknown commit" } else { GIT_SHA };
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| format!("{RELEASE} ({SHA}, {DATE})"));
    &TEXT
}

/// `stage_info.version` of a report: `<release>_<short git sha>`. Spec: reports.md §2.
#[must_use]
pub fn report_version() -> String {
    format!("{RELEASE}_{GIT_SHA}")
}
