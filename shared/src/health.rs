//! Whether a process can do its work: concurrent, bounded, cached checks. Spec: http.md §2.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{FutureExt as _, Shared, join_all};
use serde::Serialize;
use tokio::time::{Instant, timeout};

/// A check that takes longer is down.
const LIMIT: Duration = Duration::from_secs(2);
/// How old a result may be.
const CACHED: Duration = Duration::from_secs(5);

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// One thing that the process leans on.
pub struct Check {
    name: String,
    vital: bool,
    run: Box<dyn Fn() -> BoxFuture<Result<(), String>> + Send + Sync>,
}

impl Check {
    /// Something that this process cannot work without: while it is down the process is not ready.
    ///
    /// `run` answers with the reason if it is down, without credentials. Its future may be dropped at any point:
    /// after 2 s, or when nobody waits for it any more. It must not block its thread.
    pub fn vital<F>(name: impl Into<String>, run: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self {
            name: name.into(),
            vital: true,
            run: Box::new(move || Box::pin(run())),
        }
    }

    /// Something that only a part of the work waits for, such as one target. For `run` see [`Check::vital`].
    pub fn partial<F>(name: impl Into<String>, run: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self {
            vital: false,
            ..Self::vital(name, run)
        }
    }

    async fn outcome(&self) -> Result<(), String> {
        timeout(LIMIT, (self.run)())
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", LIMIT.as_secs())))
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("name", &self.name)
            .field("vital", &self.vital)
            .finish_non_exhaustive()
    }
}

/// The checks of a process, and their last result.
pub struct Health {
    checks: Arc<[Check]>,
    last: Mutex<Option<Run>>,
    draining: AtomicBool,
}

/// One run of all checks. Who asks while it goes on waits for the same run.
#[derive(Clone)]
struct Run {
    began: Instant,
    report: Shared<BoxFuture<Arc<HealthReport>>>,
}

impl Run {
    fn is_fresh(&self) -> bool {
        // One that is not done after its time was left by all who waited for it, and nothing drives it any more.
        let lifetime = if self.report.peek().is_some() { CACHED } else { LIMIT };
        self.began.elapsed() < lifetime
    }
}

impl Health {
    /// Health by these checks, told in this order: raw store, records, lock, config, bus, targets by name, sinks.
    #[must_use]
    pub fn new(checks: Vec<Check>) -> Self {
        Self {
            checks: checks.into(),
            last: Mutex::new(None),
            draining: AtomicBool::new(false),
        }
    }

    /// From now on the process is not ready, whatever the checks say: it was asked to stop. Spec: faults.md 4.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether [`Health::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Runs the checks side by side, or answers with the last result if that is at most 5 s old.
    pub async fn report(&self) -> HealthReport {
        let report = self.run().report.await;
        let mut report = HealthReport::clone(&report);
        if self.is_draining() {
            report.status = Status::Down;
        }
        report
    }

    /// As [`Health::report`], but at once and without services when the process is draining.
    pub async fn readiness(&self) -> HealthReport {
        if self.is_draining() {
            HealthReport {
                status: Status::Down,
                services: Vec::new(),
            }
        } else {
            self.report().await
        }
    }

    fn run(&self) -> Run {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = last.as_ref().filter(|run| run.is_fresh()) {
            return run.clone();
        }
        let checks = self.checks.clone();
        let report: BoxFuture<_> = Box::pin(async move {
            let outcomes = join_all(checks.iter().map(Check::outcome)).await;
            Arc::new(HealthReport::new(&checks, outcomes))
        });
        let run = Run {
            began: Instant::now(),
            report: report.shared(),
        };
        *last = Some(run.clone());
        run
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("checks", &self.checks)
            .field("draining", &self.draining)
            .finish_non_exhaustive()
    }
}

/// What `/health` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    /// Of the process.
    pub status: Status,
    /// Of each thing that it leans on.
    pub services: Vec<ServiceHealth>,
}

impl HealthReport {
    /// A process that turns. Spec: http.md §2, `/health/live`.
    #[must_use]
    pub fn alive() -> Self {
        Self {
            status: Status::Up,
            services: Vec::new(),
        }
    }

    /// Whether the process can work. If not, the answer is 503.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status != Status::Down
    }

    fn new(checks: &[Check], outcomes: Vec<Result<(), String>>) -> Self {
        let mut status = Status::Up;
        let mut services = Vec::with_capacity(checks.len());
        for (check, outcome) in checks.iter().zip(outcomes) {
            if outcome.is_err() {
                status = status.max(if check.vital { Status::Down } else { Status::Degraded });
            }
            services.push(ServiceHealth {
                service: check.name.clone(),
                status: if outcome.is_ok() { Status::Up } else { Status::Down },
                health_issue: outcome.err().unwrap_or_else(|| "None reported".into()),
            });
        }
        Self { status, services }
    }
}

/// One of the `services` of `/health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceHealth {
    /// Its name.
    pub service: String,
    /// `UP` or `DOWN`.
    pub status: Status,
    /// Why it is down, or `None reported`.
    pub health_issue: String,
}

/// How it is, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// All works.
    Up,
    /// Only a part of the work waits.
    Degraded,
    /// It does not work.
    Down,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::time::advance;

    use super::*;

    async fn up() -> Result<(), String> {
        Ok(())
    }

    async fn down() -> Result<(), String> {
        Err("folder is gone".into())
    }

    #[tokio::test]
    async fn the_answer_has_the_shape_and_order_of_the_specification() {
        let health = Health::new(vec![
            Check::vital("File Storage", up),
            Check::vital("Records", up),
            Check::partial("File Delivery Target dex", down),
        ]);
        let report = serde_json::to_string(&health.report().await).unwrap();
        let expected = concat!(
            r#"{"status":"DEGRADED","services":["#,
            r#"{"service":"File Storage","status":"UP","health_issue":"None reported"},"#,
            r#"{"service":"Records","status":"UP","health_issue":"None reported"},"#,
            r#"{"service":"File Delivery Target dex","status":"DOWN","health_issue":"folder is gone"}]}"#
        );
        assert_eq!(report, expected);
    }

    #[tokio::test]
    async fn only_what_is_vital_takes_readiness_away() {
        let status = |checks| async move { Health::new(checks).report().await.status };
        assert_eq!(status(vec![]).await, Status::Up);
        assert_eq!(
            status(vec![Check::partial("a", up), Check::vital("b", up)]).await,
            Status::Up
        );
        assert_eq!(
            status(vec![Check::partial("a", down), Check::vital("b", up)]).await,
            Status::Degraded
        );
        assert_eq!(
            status(vec![Check::vital("a", down), Check::partial("b", down)]).await,
            Status::Down
        );
    }

    #[tokio::test(start_paused = true)]
    async fn checks_run_side_by_side_and_a_hanging_one_is_down_after_two_seconds() {
        let hang = || std::future::pending::<Result<(), String>>();
        let health = Health::new(vec![
            Check::partial("a", hang),
            Check::partial("b", hang),
            Check::vital("c", up),
        ]);
        let began = Instant::now();
        let report = health.report().await;
        assert!(
            began.elapsed() < LIMIT + Duration::from_millis(100),
            "not one after the other"
        );
        assert_eq!(report.status, Status::Degraded);
        assert_eq!(report.services[1].health_issue, "no answer within 2 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_serves_all_who_ask_for_five_seconds() {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let health = Health::new(vec![Check::vital("a", move || {
            counted.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(())
            }
        })]);
        let all = join_all((0..10).map(|_| health.report())).await;
        assert!(all.iter().all(HealthReport::is_ready));
        assert_eq!(runs.load(Ordering::SeqCst), 1, "all waited for the same run");
        advance(Duration::from_millis(3900)).await;
        health.report().await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        advance(Duration::from_millis(200)).await;
        health.report().await;
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_nobody_waited_for_is_not_held_against_the_next_who_asks() {
        let health = Health::new(vec![Check::vital("a", || async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(())
        })]);
        assert!(
            timeout(Duration::from_millis(100), health.report()).await.is_err(),
            "gave up"
        );
        advance(LIMIT).await;
        assert_eq!(health.report().await.status, Status::Up);
    }

    #[tokio::test]
    async fn a_draining_process_is_not_ready_at_once() {
        let health = Health::new(vec![Check::vital("a", up)]);
        assert!(health.readiness().await.is_ready());
        health.drain();
        assert!(health.is_draining() && !health.readiness().await.is_ready());
        let report = health.report().await;
        assert_eq!((report.status, report.services[0].status), (Status::Down, Status::Up));
    }
}
