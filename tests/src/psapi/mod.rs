//! A strict fake of the processing-status API's GraphQL door, with every fault that a test asks for.
//! Spec: reports.md §4, §5.

pub mod check;
mod store;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use store::{Arrival, Store};

/// The one mutation, without its white space.
const MUTATION: &str = "mutation UpsertReport($action: String!, $report: BasicHashMap!) { upsertReport(action: \
                        $action, report: $report) { result reason uploadId reportId issues schemaFileNames } }";

/// What is done to a report instead of taking it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An answer of HTTP's own.
    Status {
        /// Its code.
        code: u16,
        /// `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// 200 with top-level `errors` of this classification.
    Errors(&'static str),
    /// 200 with `result: FAILURE`.
    Failure {
        /// The reason.
        reason: &'static str,
        /// What was found.
        issues: Vec<&'static str>,
    },
    /// Never answered, not taken.
    Hang,
    /// Taken, and answered so much later.
    Late(Duration),
    /// Never answered, and taken so much later, whether anybody still waits or not: something between was holding it.
    Held(Duration),
    /// The connection is closed without an answer.
    Drop,
    /// 200 with something else than JSON.
    Garbage,
    /// 200 with more than anybody should read.
    Huge,
}

/// The running API. Dropping it ends it.
#[derive(Debug)]
pub struct PsApi {
    addr: SocketAddr,
    shared: Arc<Shared>,
    away: watch::Sender<bool>,
    _serving: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    concurrent: Mutex<Concurrent>,
    token: Option<String>,
}

#[derive(Debug, Default)]
struct Faults {
    next: Vec<Fault>,
    always: Option<Fault>,
    only: Option<fn(&Value) -> bool>,
}

/// Requests at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Concurrent {
    now: usize,
    /// The most there ever were.
    pub most: usize,
}

impl PsApi {
    /// An API that takes every good report.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start() -> Self {
        Self::with_token(None).await
    }

    /// One that answers 401 without this token.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn with_token(token: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            token: token.map(str::to_owned),
            ..Shared::default()
        });
        let away = watch::Sender::new(false);
        let mut serving = JoinSet::new();
        serving.spawn(serve(addr, listener, shared.clone(), away.subscribe()));
        Self {
            addr,
            shared,
            away,
            _serving: serving,
        }
    }

    /// Its endpoint.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/graphql", self.addr)
    }

    /// What arrived and what it keeps.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.shared.store)
    }

    /// Requests at once.
    #[must_use]
    pub fn concurrent(&self) -> Concurrent {
        *lock(&self.shared.concurrent)
    }

    /// The next `count` reports meet `fault`.
    pub fn fail_next(&self, count: usize, fault: &Fault) {
        lock(&self.shared.faults).next.extend(vec![fault.clone(); count]);
    }

    /// From now on every report meets `fault`; `None` ends it.
    pub fn fail(&self, fault: Option<Fault>) {
        lock(&self.shared.faults).always = fault;
    }

    /// Faults are for these reports only.
    pub fn fail_only(&self, these: fn(&Value) -> bool) {
        lock(&self.shared.faults).only = Some(these);
    }

    /// Connections are refused, those that are open are cut; `false`: it is there again, on the same port.
    pub fn go_away(&self, away: bool) {
        self.away.send_replace(away);
    }
}

async fn serve(addr: SocketAddr, listener: TcpListener, shared: Arc<Shared>, mut away: watch::Receiver<bool>) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let is_away = *away.borrow_and_update();
        if is_away {
            listener = None;
            connections.shutdown().await;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(addr).await.expect("the port is free again"));
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = away.changed() => if changed.is_err() { return },
            accepted = accepted => if let Ok((stream, _)) = accepted {
                connections.spawn(connection(stream, shared.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(request, shared.clone()));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A client that goes away, or is dropped on purpose, is no trouble of the API's.
    let _ended = served.await.is_ok();
}

/// Ends the connection without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("dropped on purpose")
    }
}

impl std::error::Error for Dropped {}

impl From<Infallible> for Dropped {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

type Answer = Result<Response<Full<Bytes>>, Dropped>;

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Answer {
    let _counted = Counted::new(&shared);
    let (head, body) = request.into_parts();
    if head.method != Method::POST || head.uri.path() != "/graphql" {
        return status(404, None);
    }
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    if !header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
        return status(415, None);
    }
    if let Some(token) = &shared.token
        && header("authorization") != Some(format!("Bearer {token}").as_str())
    {
        return status(401, None);
    }
    let Ok(body) = body.collect().await else {
        return Err(Dropped);
    };
    let Ok(request) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
        return status(400, None);
    };
    let (action, report) = match parse(&request) {
        Ok(Some(asked)) => asked,
        Ok(None) => return json_answer(&json!({"data": {"__typename": "Query"}})),
        Err(problem) => return json_answer(&errors(&problem, "ValidationError")),
    };
    let fault = {
        let mut faults = lock(&shared.faults);
        if faults.only.is_some_and(|these| !these(&report)) {
            None
        } else if faults.next.is_empty() {
            faults.always.clone()
        } else {
            Some(faults.next.remove(0))
        }
    };
    let Some(fault) = fault else {
        let upserted = lock(&shared.store).upsert(&action, report);
        return json_answer(&json!({"data": {"upsertReport": upserted}}));
    };
    if let Fault::Late(late) = fault {
        let upserted = lock(&shared.store).upsert(&action, report);
        tokio::time::sleep(late).await;
        return json_answer(&json!({"data": {"upsertReport": upserted}}));
    }
    if let Fault::Held(held) = fault {
        tokio::spawn(async move {
            tokio::time::sleep(held).await;
            lock(&shared.store).upsert(&action, report);
        });
        return std::future::pending().await;
    }
    lock(&shared.store).arrived(&action, report, false);
    match fault {
        Fault::Status { code, retry_after } => status(code, retry_after),
        Fault::Errors(classification) => json_answer(&errors("it did not work", classification)),
        Fault::Failure { reason, issues } => {
            let payload = json!({"result": "FAILURE", "reason": reason, "issues": issues});
            json_answer(&json!({"data": {"upsertReport": payload}}))
        }
        Fault::Drop => Err(Dropped),
        Fault::Garbage => Ok(Response::new(Full::new(Bytes::from_static(b"<html>welcome</html>")))),
        Fault::Huge => Ok(Response::new(Full::new(vec![b' '; 64 * 1024 * 1024].into()))),
        Fault::Hang | Fault::Late(_) | Fault::Held(_) => std::future::pending().await,
    }
}

/// The action and the report of a strictly good request; `None`: it only asks whether anybody is there.
fn parse(request: &Value) -> Result<Option<(String, Value)>, String> {
    let fields = request.as_object().ok_or("the request is no object")?;
    if let Some(field) = fields
        .keys()
        .find(|field| !["query", "variables"].contains(&field.as_str()))
    {
        return Err(format!("unknown field {field}"));
    }
    let query = request["query"].as_str().ok_or("query is no text")?;
    let query = query.split_whitespace().collect::<Vec<_>>().join(" ");
    if query == "{ __typename }" {
        return Ok(None);
    }
    if query != MUTATION {
        return Err(format!("no such operation: {query}"));
    }
    let variables = request["variables"].as_object().ok_or("variables are no object")?;
    if let Some(name) = variables
        .keys()
        .find(|name| !["action", "report"].contains(&name.as_str()))
    {
        return Err(format!("unknown variable {name}"));
    }
    let action = variables
        .get("action")
        .and_then(Value::as_str)
        .ok_or("$action is no String!")?;
    let report = variables.get("report").filter(|report| report.is_object());
    let report = report.ok_or("$report is no BasicHashMap!")?;
    if report.get("disposition_type").is_some() {
        return Err("the disposition is the action".to_owned());
    }
    Ok(Some((action.to_owned(), report.clone())))
}

fn errors(message: &str, classification: &str) -> Value {
    json!({"data": null, "errors": [{"message": message, "extensions": {"classification": classification}}]})
}

fn json_answer(json: &Value) -> Answer {
    let body = Full::new(Bytes::from(json.to_string()));
    let answer = Response::builder()
        .header("content-type", "application/json")
        .body(body);
    Ok(answer.expect("a constant head is valid"))
}

fn status(code: u16, retry_after: Option<u64>) -> Answer {
    let mut answer = Response::builder().status(StatusCode::from_u16(code).expect("a status"));
    if let Some(seconds) = retry_after {
        answer = answer.header("retry-after", seconds);
    }
    Ok(answer.body(Full::default()).expect("a constant head is valid"))
}

struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        let mut concurrent = lock(&shared.concurrent);
        concurrent.now += 1;
        concurrent.most = concurrent.most.max(concurrent.now);
        Self(shared.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        lock(&self.0.concurrent).now -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mutation_with_its_variables_is_understood() {
        let good = json!({"query": MUTATION, "variables": {"action": "create", "report": {}}});
        assert_eq!(parse(&good), Ok(Some(("create".to_owned(), json!({})))));
        assert_eq!(parse(&json!({"query": "{ __typename }"})), Ok(None));
        for (pointer, wrong) in [
            ("/query", json!("mutation { upsertReport }")),
            ("/variables", json!([])),
            ("/variables/action", json!(1)),
            ("/variables/report", json!("text")),
            ("/variables/report", json!({"disposition_type": "add"})),
        ] {
            let mut request = good.clone();
            *request.pointer_mut(pointer).unwrap() = wrong;
            assert!(parse(&request).is_err(), "{pointer}");
        }
        let mut more = good.clone();
        more["operation"] = json!("x");
        assert!(parse(&more).is_err());
    }
}
