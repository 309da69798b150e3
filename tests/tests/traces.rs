//! A trace of an upload, from its sender's request to its last report, across processes, retries and restarts.
//! Spec: bus.md, "Two kinds of messages"; http.md §7, `OTEL_*`; security.md rows 12, 29; W3C Trace Context.

use std::collections::BTreeMap;

use md5::{Digest as _, Md5};
use serde_json::Value;
use tests::client::{Client, OFFSET_OCTETS, Upload, encode};
use tests::otlp::{Collector, Manner, Span};
use tests::pattern::{assert_same, pattern};
use tests::site::{LIMIT, Program, Site, SiteBuilder, TARGETS};
use tests::wait::eventually;

/// A sender's trace, and two spans of its own.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CREATING: &str = "00f067aa0ba902b7";
const SENDING: &str = "53995c3f42cd8ad8";

fn parent(span: &str) -> String {
    format!("00-{TRACE}-{span}-01")
}

fn exporting(site: SiteBuilder, collector: &Collector) -> SiteBuilder {
    site.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())
}

/// Creates an upload of these bytes, and sends them, each by a request with these headers.
async fn send(client: &Client, content: &[u8], creating: &[(&str, &str)], sending: &[(&str, &str)]) -> Upload {
    let length = content.len().to_string();
    let metadata = encode(&[("filename", "trace.bin"), ("note", "canary-of-a-sender")]);
    let mut headers = vec![("Upload-Length", length.as_str()), ("Upload-Metadata", &metadata)];
    headers.extend_from_slice(creating);
    let created = client.tus("POST", client.collection(), &headers, "").await.expect(201);
    let upload = client.upload(&created);
    let mut headers = vec![("Content-Type", OFFSET_OCTETS), ("Upload-Offset", "0")];
    headers.extend_from_slice(sending);
    client
        .tus("PATCH", &upload.url, &headers, content.to_vec())
        .await
        .expect(204);
    upload
}

/// The spans of `trace` once there are `count` of them with this name.
async fn spans_of(collector: &Collector, trace: &str, name: &str, count: usize) -> Vec<Span> {
    let what = format!("{count} spans {name:?} of trace {trace}");
    eventually(&what, LIMIT, || async {
        let spans = collector.trace(trace);
        (spans.iter().filter(|span| span.name == name).count() >= count).then_some(spans)
    })
    .await
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = named(spans, name);
    assert_eq!(found.len(), 1, "{name}: {spans:#?}");
    found[0]
}

/// Checks that everything of one good upload is in `spans`, each step below the one that led to it.
fn assert_whole(spans: &[Span], upload: &Upload) {
    let create = one(spans, "POST /files/");
    let append = one(spans, "PATCH /files/{id}");
    assert_eq!((create.parent.as_str(), append.parent.as_str()), (CREATING, SENDING));
    assert_eq!((create.kind, append.kind), (2, 2), "servers");
    for (span, method, status) in [(create, "POST", "201"), (append, "PATCH", "204")] {
        assert_eq!(span.attribute("http.request.method"), method);
        assert_eq!(span.attribute("http.response.status_code"), status);
        assert_eq!(span.attribute("ferry.upload_id"), upload.id);
        assert!(!span.failed);
    }
    assert_eq!(append.attribute("http.route"), "/files/{id}");
    let finish = one(spans, "finish");
    assert_eq!(finish.parent, append.id);
    let job = one(spans, "process copy");
    assert_eq!(
        job.parent, finish.id,
        "the copies are of the span that committed the upload"
    );
    assert_eq!(job.kind, 5, "a consumer");
    assert_eq!(job.attribute("messaging.destination.name"), "copy");
    assert_eq!(job.attribute("ferry.upload_id"), upload.id);
    let mut targets = Vec::new();
    for deliver in named(spans, "deliver") {
        assert_eq!(deliver.parent, job.id);
        targets.push(deliver.attribute("ferry.target"));
        let below = |name: &str| {
            let mut found = named(spans, name);
            found.retain(|span| span.parent == deliver.id);
            assert_eq!(found.len(), 1, "{name}: {spans:#?}");
            found[0]
        };
        below("verify");
        let outcome = below("outcome");
        assert_eq!(outcome.attribute("ferry.outcome"), "succeeded");
        let mut reports = named(spans, "process report");
        reports.retain(|report| report.parent == outcome.id);
        assert_eq!(reports.len(), 1, "{spans:#?}");
        assert_eq!(reports[0].attribute("ferry.report.action"), "blob-file-copy");
        assert_eq!(reports[0].attribute("ferry.sink"), "jsonl");
    }
    targets.sort_unstable();
    assert_eq!(targets, TARGETS);
    let mut parents: BTreeMap<&str, usize> = BTreeMap::new();
    for report in named(spans, "process report") {
        *parents.entry(&report.parent).or_default() += 1;
    }
    assert_eq!(parents[create.id.as_str()], 3, "of the creation");
    assert_eq!(parents[finish.id.as_str()], 2, "of the completion");
    for span in spans {
        let known =
            [CREATING, SENDING].contains(&span.parent.as_str()) || spans.iter().any(|other| other.id == span.parent);
        assert!(known, "no part of the trace: {span:#?}");
        assert!(span.links.is_empty(), "nothing was done again: {span:#?}");
    }
}

/// One sender's trace goes through: HTTP, commit, copies, reports; in one process and in three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_one_trace_below_its_senders_across_processes() {
    for (site, services) in [
        (Site::build(), vec!["ferry"]),
        (Site::build().copiers(1), vec!["copier", "ingest"]),
    ] {
        let collector = Collector::start(Manner::Takes).await;
        let site = exporting(site, &collector)
            .env("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20canary-of-ours")
            .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
            .start()
            .await;
        let content = pattern(1, 300_000);
        let state = ("tracestate", "vendor=opaque");
        let creating = [("traceparent", &*parent(CREATING)), state];
        let sending = [("traceparent", &*parent(SENDING)), state];
        let upload = send(&site.client(), &content, &creating, &sending).await;
        for target in TARGETS {
            assert_same(target, &site.delivered(target, &upload.id).await, &content);
        }
        let spans = spans_of(&collector, TRACE, "process report", 7).await;
        assert_whole(&spans, &upload);
        assert_eq!(one(&spans, "POST /files/").state, "vendor=opaque");
        let mut seen: Vec<&str> = spans.iter().map(|span| span.service.as_str()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, services);
        // Security 12, 29: nothing that a sender wrote, and no secret of ours but where it belongs.
        assert!(collector.came("deployment.environment.name"));
        assert!(!collector.came("canary") && !collector.came("trace.bin"));
        let authorized = collector
            .heads()
            .iter()
            .all(|head| head.contains("Bearer canary-of-ours"));
        assert!(authorized, "{:?}", collector.heads());
        assert!(!site.log().contains("canary"), "{}", site.log());
    }
}

/// Whoever names no trace, or a broken one, gets the upload's own: the MD5 of its id, in all its requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_sender_names_no_trace_has_its_own() {
    let collector = Collector::start(Manner::Takes).await;
    let site = exporting(Site::build(), &collector).start().await;
    let client = site.client();
    let broken = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01")];
    for (creating, sending) in [(&[][..], &[][..]), (&broken[..], &broken[..])] {
        let upload = send(&client, b"0123456789", creating, sending).await;
        upload.head().await.expect(200);
        let trace = own_trace(&upload.id);
        let spans = spans_of(&collector, &trace, "process report", 7).await;
        for name in ["POST /files/", "PATCH /files/{id}", "HEAD /files/{id}"] {
            assert_eq!(one(&spans, name).parent, "", "{name} begins it");
        }
        assert_eq!(one(&spans, "process copy").parent, one(&spans, "finish").id);
    }
    // What is refused is told as it is, and is an error only if it is ours.
    let unknown = format!("{}00000000-0000-4000-8000-000000000000", client.collection());
    client
        .tus("HEAD", &unknown, &[("traceparent", &parent(SENDING))], "")
        .await
        .expect(404);
    let spans = spans_of(&collector, TRACE, "HEAD /files/{id}", 1).await;
    assert_eq!(spans[0].attribute("http.response.status_code"), "404");
    assert!(!spans[0].failed);
}

/// The trace that an upload has of its own.
fn own_trace(id: &str) -> String {
    Md5::digest(id).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A retry is in the upload's own trace and links to the outcome that led to it, which is in the sender's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_and_a_redrive_link_to_what_they_follow() {
    let collector = Collector::start(Manner::Takes).await;
    let mut site = exporting(Site::build(), &collector)
        .env("RETRY_DELAYS", "1s")
        // Both targets, once in the sender's trace and once more each: then they are given up.
        .env("FERRY_FAILPOINTS", "copy.part-written=error*4")
        .start()
        .await;
    let content = pattern(2, 10_000);
    let (creating, sending) = (parent(CREATING), parent(SENDING));
    let upload = send(
        &site.client(),
        &content,
        &[("traceparent", &creating)],
        &[("traceparent", &sending)],
    )
    .await;
    let own = own_trace(&upload.id);
    let first = spans_of(&collector, TRACE, "outcome", 2).await;
    let retries = spans_of(&collector, &own, "outcome", 2).await;
    assert_follow(&retries, &first, TRACE, "again");
    eventually("both are given up", LIMIT, || async {
        let info = upload.info().await;
        let deliveries = info["deliveries"].as_array().expect("deliveries").clone();
        deliveries
            .iter()
            .all(|delivery| delivery["status"] == "FAILURE")
            .then_some(())
    })
    .await;
    assert_eq!(site.terminate().await.code(), Some(0));
    let data = site.data().display().to_string();
    let redriven = Program::new("ferry")
        .arg("redrive")
        .arg("--data")
        .arg(&data)
        .run(LIMIT)
        .await;
    assert_eq!(redriven.status.code(), Some(0), "{redriven:?}");
    site.forget_env("FERRY_FAILPOINTS");
    site.restart().await;
    for target in TARGETS {
        assert_same(target, &site.delivered(target, &upload.id).await, &content);
    }
    let mut all = spans_of(&collector, &own, "outcome", 4).await;
    let (before, after) = split(&mut all);
    assert_follow(&after, &before, &own, "failed");
}

/// The spans of what failed, and of what succeeded after it.
fn split(spans: &mut [Span]) -> (Vec<Span>, Vec<Span>) {
    let good = |span: &Span| span.attribute("ferry.outcome") == "succeeded";
    let outcomes = spans.iter().filter(|span| span.name == "outcome");
    let done: Vec<String> = outcomes
        .filter(|span| good(span))
        .map(|span| span.parent.clone())
        .collect();
    let jobs: Vec<String> = spans
        .iter()
        .filter(|span| done.contains(&span.id))
        .map(|span| span.parent.clone())
        .collect();
    let of_done = |span: &Span| done.contains(&span.parent) || done.contains(&span.id) || jobs.contains(&span.id);
    spans.iter().cloned().partition(|span| !of_done(span))
}

/// Each job in `later` begins anew and links to one of the outcomes in `earlier`, which were `outcome`.
fn assert_follow(later: &[Span], earlier: &[Span], trace: &str, outcome: &str) {
    let outcomes: Vec<&Span> = named(earlier, "outcome")
        .into_iter()
        .filter(|span| span.attribute("ferry.outcome") == outcome)
        .collect();
    assert_eq!(outcomes.len(), 2, "{earlier:#?}");
    assert!(
        outcomes
            .iter()
            .all(|span| span.failed && span.attribute("error.type") == "transient")
    );
    let jobs = named(later, "process copy");
    assert_eq!(jobs.len(), 2, "{later:#?}");
    for job in jobs {
        assert_eq!(job.parent, "", "{job:#?}");
        let [(linked, span)] = &job.links[..] else {
            panic!("{job:#?}")
        };
        assert_eq!(linked, trace);
        assert!(outcomes.iter().any(|outcome| outcome.id == *span), "{job:#?}");
    }
}

/// Row 2: what the sweeper finishes after a crash links to the request that made the upload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_left_is_finished_with_a_link_to_its_request() {
    let collector = Collector::start(Manner::Takes).await;
    let mut site = exporting(Site::build(), &collector)
        .env("FERRY_FAILPOINTS", "finish.committing-recorded=exit")
        .start()
        .await;
    let client = site.client();
    let headers = [("Upload-Length", "10"), ("traceparent", &parent(CREATING))];
    let created = client.tus("POST", client.collection(), &headers, "").await.expect(201);
    let upload = client.upload(&created);
    let spans = spans_of(&collector, TRACE, "POST /files/", 1).await;
    upload
        .try_patch(0, b"0123456789")
        .await
        .expect_err("it dies before it answers");
    site.stopped(LIMIT).await;
    site.forget_env("FERRY_FAILPOINTS");
    site.restart().await;
    site.delivered("dex", &upload.id).await;
    let own = own_trace(&upload.id);
    let finished = spans_of(&collector, &own, "outcome", 2).await;
    let finish = one(&finished, "finish");
    assert_eq!(finish.links, [(TRACE.to_owned(), spans[0].id.clone())]);
    assert_eq!(one(&finished, "process copy").parent, finish.id);
}

/// Without a collector the ids are made and carried all the same: every line of the log tells its trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_tell_the_trace_although_nothing_is_exported() {
    for site in [Site::build(), Site::build().copiers(1)] {
        let site = site.env("LOG_FORMAT", "json").start().await;
        let (creating, sending) = (parent(CREATING), parent(SENDING));
        let upload = send(
            &site.client(),
            b"0123456789",
            &[("traceparent", &creating)],
            &[("traceparent", &sending)],
        )
        .await;
        for target in TARGETS {
            site.delivered(target, &upload.id).await;
        }
        let log = site.log();
        let lines = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
        let mut told = BTreeMap::new();
        for line in lines.filter(|line| line["fields"]["upload_id"] == upload.id) {
            assert_eq!(line["trace_id"], TRACE, "{line}");
            let message = line["fields"]["message"].as_str().unwrap_or_default();
            *told.entry(message.to_owned()).or_insert(0) += 1;
        }
        assert_eq!(
            (told["created"], told["committed"], told["delivered"]),
            (1, 1, 2),
            "{told:?}"
        );
    }
}

/// A sender's word that its trace is not recorded is kept, and a sampler says what holds for the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_sampled_is_exported() {
    let collector = Collector::start(Manner::Takes).await;
    let site = exporting(Site::build(), &collector)
        .env("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        .start()
        .await;
    let client = site.client();
    let unsampled = format!("00-{}-{SENDING}-00", TRACE.replace('4', "5"));
    for headers in [&[][..], &[("traceparent", unsampled.as_str())][..]] {
        let upload = send(&client, b"0123456789", headers, headers).await;
        site.reports_of(&upload.id, 7).await;
    }
    let sampled = [("traceparent", &*parent(SENDING))];
    let upload = send(&client, b"0123456789", &sampled, &sampled).await;
    site.reports_of(&upload.id, 7).await;
    spans_of(&collector, TRACE, "process report", 7).await;
    // They are sent in the order of their ends: what was before is there, or was not recorded.
    let strangers: Vec<Span> = collector
        .spans()
        .into_iter()
        .filter(|span| span.trace != TRACE)
        .collect();
    assert!(strangers.is_empty(), "{strangers:#?}");
}

/// Row 77: what is wrong is told with all the rest, and what is right is shown without its secret.
#[tokio::test]
async fn settings_of_traces_are_checked_and_shown_like_all_others() {
    let up = || Program::new("ferry").arg("up").arg("--listen").arg("127.0.0.1:0");
    let wrong = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "canary"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("DURABILITY", "sometimes"),
    ];
    let program = wrong
        .iter()
        .fold(up(), |program, (name, value)| program.env(name, value));
    let ended = program.run(LIMIT).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    for (name, _) in wrong {
        assert!(ended.stderr.contains(name), "{name}: {}", ended.stderr);
    }
    assert!(ended.stderr.contains("must be http/protobuf"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("canary"), "{}", ended.stderr);
    let checked = up()
        .arg("--config-check")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-team=canary")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
        .run(LIMIT)
        .await;
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let shown = "OTEL_EXPORTER_OTLP_HEADERS=[redacted]\n";
    assert!(
        checked.stdout.contains(shown) && !checked.stdout.contains("canary"),
        "{}",
        checked.stdout
    );
}
