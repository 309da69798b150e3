//! What the kernel says about this process. Spec: http.md §4, `process_*`.
//!
//! The prometheus crate's own collector counts processor time in whole seconds and needs one more crate.

use std::fs;

use prometheus::proto::{MetricFamily, MetricType};

use super::derived::family;

/// The `process_*` metrics as they stand now; none where there is no `/proc`.
pub(super) fn families() -> Vec<MetricFamily> {
    let mut families = Vec::new();
    let mut gauge = |name, help, value: Option<f64>| {
        families.extend(value.map(|value| family(name, help, MetricType::GAUGE, [(Vec::new(), value)])));
    };
    let stat = fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|text| Stat::parse(&text));
    gauge(
        "process_resident_memory_bytes",
        "Memory of this process in RAM.",
        stat.as_ref().map(|stat| stat.resident_bytes),
    );
    gauge(
        "process_virtual_memory_bytes",
        "Address space of this process.",
        stat.as_ref().map(|stat| stat.virtual_bytes),
    );
    gauge(
        "process_threads",
        "Threads of this process.",
        stat.as_ref().map(|stat| stat.threads),
    );
    gauge(
        "process_start_time_seconds",
        "When this process started, in seconds since 1970.",
        stat.as_ref().and_then(|stat| Some(boot_time()? + stat.started)),
    );
    gauge("process_open_fds", "Open file descriptors.", open_descriptors());
    gauge("process_max_fds", "Limit of open file descriptors.", descriptor_limit());
    families.extend(stat.map(|stat| {
        family(
            "process_cpu_seconds_total",
            "Processor time, of the process and of the kernel for it.",
            MetricType::COUNTER,
            [(Vec::new(), stat.cpu_seconds)],
        )
    }));
    families
}

/// Of `/proc/self/stat`, in base units.
#[derive(Debug)]
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    /// Seconds after boot.
    started: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in brackets and may hold anything, so counting begins behind it.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Numbers as in proc_pid_stat(5), where the first field behind the name is 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let ticks = f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).ok()?);
        let page = f64::from(u32::try_from(rustix::param::page_size()).ok()?);
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            threads: field(20)?,
            started: field(22)? / ticks,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page,
        })
    }
}

/// Seconds since 1970.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

fn open_descriptors() -> Option<f64> {
    // Since Linux 6.2 the folder's size is the count. Reading the folder needs a descriptor, and the metric matters
    // most where there is none left (faults.md 15).
    let count = match fs::metadata("/proc/self/fd").ok()?.len() {
        // The reading itself holds one.
        0 => fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1),
        count => usize::try_from(count).ok()?,
    };
    u32::try_from(count).ok().map(f64::from)
}

fn descriptor_limit() -> Option<f64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
    u32::try_from(limit).ok().map(f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn open_descriptors_are_counted() {
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let listed = fs::read_dir("/proc/self/fd").unwrap().count();
        let counted = open_descriptors().unwrap();
        // Other tests of this process open and close files meanwhile.
        assert!(
            (counted - f64::from(u32::try_from(listed).unwrap())).abs() < 50.0,
            "{counted} of {listed}"
        );
        assert!(counted > 100.0);
        drop(files);
    }

    #[test]
    fn a_program_name_with_brackets_and_spaces_is_no_field() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 7 0 1000 4096 3";
        let stat = Stat::parse(&format!("42 (a) b (c) {rest}")).unwrap();
        let ticks = f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap());
        assert!((stat.cpu_seconds * ticks - 300.0).abs() < 1e-6);
        assert!((stat.started * ticks - 1000.0).abs() < 1e-6);
        assert_eq!((stat.threads, stat.virtual_bytes), (7.0, 4096.0));
        assert!(Stat::parse("42 (a) S 1").is_none());
    }
}
