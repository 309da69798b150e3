//! What the kernel says of a running process. Linux only: elsewhere these panic.

use std::fs;

/// Most memory in RAM that the process `pid` ever had since [`forget_peak`], in bytes.
///
/// # Panics
/// There is no such process.
#[must_use]
pub fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the state of a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .expect("VmHWM in kB");
    kib.parse::<u64>().expect("a number") * 1024
}

/// From now on [`peak_memory`] is counted anew.
///
/// # Panics
/// The kernel does not let this process do that.
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("reset the peak of memory");
}

/// Processor time of the process `pid`, in clock ticks (most often 10 ms).
///
/// # Panics
/// There is no such process.
#[must_use]
pub fn processor_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("read the state of a process");
    let (_, rest) = stat.rsplit_once(')').expect("the name is in brackets");
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Numbers as in proc_pid_stat(5), where the first field behind the name is 3.
    let field = |number: usize| fields[number - 3].parse::<u64>().expect("a number");
    field(14) + field(15)
}
