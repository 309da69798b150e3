//! The size of a file costs no memory. Promise 6 of DESIGN.md; faults.md row 63. The part plan of 5 TiB is tested where
//! it is made, in `shared/src/store/limits.rs`. A run with 100 GiB, which needs room for three times that:
//!
//! ```sh
//! cargo build --workspace --bins
//! FERRY_TEST_LARGE_MIB=102400 cargo test -p tests --test copying large -- --nocapture
//! ```

use std::time::Instant;

use tests::pattern::pattern;
use tests::site::{LIMIT, Part, Site, TARGETS};
use tests::wait::eventually;

use crate::{COPIER, MIB, len_of, peak_mib};

/// Size of the small file and, in CI, of the large one: less than a minute of reading, writing and comparing.
const SMALL_MIB: usize = 128;
const LARGE_MIB: usize = 1024;

/// Row 63: the peak of memory of both services is the same after a file that is eight times as large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_costs_no_more_memory_than_a_small_one() {
    let site = Site::build().copiers(1).env("DURABILITY", "none").start().await;
    let given = std::env::var("FERRY_TEST_LARGE_MIB").ok();
    let large = given.map_or(LARGE_MIB, |text| {
        text.parse().expect("FERRY_TEST_LARGE_MIB is a number")
    });
    let mut peaks = Vec::new();
    for size in [SMALL_MIB, large].map(|mib| mib * MIB) {
        let begun = Instant::now();
        let upload = site.client().create(size, &[("filename", "large.bin")]).await;
        let body = pattern(u64::try_from(size).expect("a size"), 64 * MIB);
        for at in (0..size).step_by(body.len()) {
            upload.append(u64::try_from(at).expect("an offset"), &body).await;
        }
        for target in TARGETS {
            let location = eventually("a large copy", 100 * LIMIT, || async {
                let info = upload.info().await;
                let deliveries = info["deliveries"].as_array()?;
                let delivery = deliveries.iter().find(|delivery| delivery["name"] == target)?;
                assert_ne!(delivery["status"], "FAILURE", "{delivery}");
                (delivery["status"] == "SUCCESS").then(|| delivery["location"].as_str().map(str::to_owned))?
            })
            .await;
            // The copier has compared it, byte by byte.
            assert_eq!(len_of(location.as_ref()), size as u64);
        }
        let peak = [Part::Ingest, COPIER].map(|part| peak_mib(&site, part));
        println!("{} MiB in {:?}: peaks of {peak:?} MiB", size / MIB, begun.elapsed());
        peaks.push(peak);
    }
    for (part, (small, large)) in ["ingest", "copier"].iter().zip(peaks[0].iter().zip(peaks[1])) {
        assert!(
            large <= small + 24,
            "{part}: {small} MiB, and {large} MiB for the large file"
        );
        assert!(large <= 256, "{part}: {large} MiB");
    }
}
