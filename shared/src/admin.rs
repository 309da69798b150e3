//! The pages for operators: health, version, metrics. Both services serve them, and on either listener.
//! Spec: http.md §2–§4.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use actix_web::dev::Server;
use actix_web::http::header::{self, ContentType};
use actix_web::web::{self, ServiceConfig};
use actix_web::{App, HttpResponse, HttpServer, Resource};
use serde::Serialize;

use crate::build;
use crate::health::{Health, HealthReport};
use crate::telemetry::{Metrics, TEXT_FORMAT};

/// Connections to an admin listener at once: a handful of probes and scrapers, and none can take many descriptors.
const CONNECTIONS: usize = 64;

/// What the pages show.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `dex_app` of `/`: `upload server` in ingest.
    pub app: &'static str,
    /// Health of this process.
    pub health: Arc<Health>,
    /// Metrics of this process.
    pub metrics: Arc<Metrics>,
}

impl Admin {
    /// Adds `/`, `/health`, `/health/live`, `/health/ready`, `/version` and, if `with_metrics`, `/metrics` to an
    /// application, for GET and HEAD; other methods are answered with 405.
    pub fn configure(&self, with_metrics: bool, config: &mut ServiceConfig) {
        let app = self.app;
        config.service(page("/", move || async move { root(app) }));
        config.service(page("/version", || async { version() }));
        config.service(page("/health/live", || async { health(&HealthReport::alive()) }));
        let ready = self.health.clone();
        config.service(page("/health/ready", move || {
            let ready = ready.clone();
            async move { health(&ready.readiness().await) }
        }));
        let all = self.health.clone();
        config.service(page("/health", move || {
            let all = all.clone();
            async move { health(&all.report().await) }
        }));
        if with_metrics {
            let metrics = self.metrics.clone();
            config.service(page("/metrics", move || {
                let metrics = metrics.clone();
                async move { HttpResponse::Ok().content_type(TEXT_FORMAT).body(metrics.text()) }
            }));
        }
    }
}

/// Binds the admin listener of a service, with metrics. Answers with its address (port 0 is taken as a free port)
/// and the server, which serves as long as its future is driven; its `handle()` stops it. It listens to no signal
/// and has one thread.
///
/// # Errors
/// `address` cannot be bound.
pub fn serve(address: SocketAddr, admin: Admin) -> io::Result<(SocketAddr, Server)> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("bind the admin listener {address}: {error}"));
    let server = HttpServer::new(move || {
        App::new()
            .configure(|config| admin.configure(true, config))
            .default_service(web::to(not_found))
    })
    .workers(1)
    .max_connections(CONNECTIONS)
    .shutdown_timeout(1)
    .disable_signals()
    .bind(address)
    .map_err(named)?;
    let bound = server.addrs().first().copied();
    let bound = bound.ok_or_else(|| named(io::ErrorKind::AddrNotAvailable.into()))?;
    Ok((bound, server.run()))
}

/// The answer for paths that nothing is served at.
pub async fn not_found() -> HttpResponse {
    HttpResponse::NotFound()
        .content_type(ContentType::plaintext())
        .body("404 page not found\n")
}

/// A page for GET and HEAD; the server itself leaves out the body for HEAD.
fn page<H, F>(path: &str, handler: H) -> Resource
where
    H: Fn() -> F + Clone + 'static,
    F: Future<Output = HttpResponse> + 'static,
{
    web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
        .default_service(web::to(not_allowed))
}

async fn not_allowed() -> HttpResponse {
    HttpResponse::MethodNotAllowed()
        .insert_header((header::ALLOW, "GET, HEAD"))
        .content_type(ContentType::plaintext())
        .body("method not allowed\n")
}

/// `/`. Structs, as the order of the keys is the original's.
#[derive(Serialize)]
struct Root<'a> {
    system: &'a str,
    dex_product: &'a str,
    dex_app: &'a str,
    server_time: String,
}

fn root(app: &str) -> HttpResponse {
    HttpResponse::Ok().json(Root {
        system: "DEX",
        dex_product: "UPLOAD API",
        dex_app: app,
        server_time: format!("{:.9}", jiff::Timestamp::now()),
    })
}

/// `/version`.
#[derive(Serialize)]
struct Version {
    repo: &'static str,
    latest_release_version: &'static str,
    git_short_sha: &'static str,
}

fn version() -> HttpResponse {
    let version = Version {
        repo: build::REPOSITORY,
        latest_release_version: build::RELEASE,
        git_short_sha: build::GIT_SHA,
    };
    let body = serde_json::to_string(&version).expect("a struct of strings is JSON");
    HttpResponse::Ok().content_type(ContentType::json()).body(body + "\n")
}

fn health(report: &HealthReport) -> HttpResponse {
    if report.is_ready() {
        HttpResponse::Ok().json(report)
    } else {
        HttpResponse::ServiceUnavailable().json(report)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::{Method, StatusCode};
    use actix_web::test::{TestRequest, call_service, init_service, read_body};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::health::Check;

    fn admin() -> Admin {
        let checks = vec![
            Check::vital("File Storage", || async { Ok(()) }),
            Check::partial("Report sink jsonl", || async { Err("disk full".into()) }),
        ];
        Admin {
            app: "upload server",
            health: Arc::new(Health::new(checks)),
            metrics: Arc::new(Metrics::new()),
        }
    }

    struct Answer {
        status: StatusCode,
        kind: String,
        allow: Option<String>,
        body: String,
    }

    async fn ask(admin: &Admin, with_metrics: bool, method: Method, path: &str) -> Answer {
        let app = App::new()
            .configure(|config| admin.configure(with_metrics, config))
            .default_service(web::to(not_found));
        let app = init_service(app).await;
        let request = TestRequest::default().method(method).uri(path).to_request();
        let answer = call_service(&app, request).await;
        let header = |name| {
            let value = answer.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        Answer {
            status: answer.status(),
            kind: header(header::CONTENT_TYPE).unwrap_or_default(),
            allow: header(header::ALLOW),
            body: String::from_utf8(read_body(answer).await.to_vec()).unwrap(),
        }
    }

    async fn get(admin: &Admin, path: &str) -> Answer {
        ask(admin, true, Method::GET, path).await
    }

    #[actix_web::test]
    async fn root_and_version_have_the_bodies_of_the_original() {
        let root = get(&admin(), "/").await;
        assert_eq!((root.status, root.kind.as_str()), (StatusCode::OK, "application/json"));
        let start = r#"{"system":"DEX","dex_product":"UPLOAD API","dex_app":"upload server","server_time":""#;
        let time = root.body.strip_prefix(start).unwrap().strip_suffix(r#""}"#).unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok());
        assert_eq!(
            time.len(),
            "2024-03-07T05:09:08.123456789Z".len(),
            "nanoseconds: {time}"
        );

        let version = get(&admin(), "/version").await;
        assert_eq!(
            (version.status, version.kind.as_str()),
            (StatusCode::OK, "application/json")
        );
        let expected = format!(
            "{{\"repo\":\"{}\",\"latest_release_version\":\"{}\",\"git_short_sha\":\"{}\"}}\n",
            build::REPOSITORY,
            build::RELEASE,
            build::GIT_SHA
        );
        assert_eq!(version.body, expected);
    }

    #[actix_web::test]
    async fn health_is_503_only_when_the_process_cannot_work() {
        let admin = admin();
        let health = get(&admin, "/health").await;
        assert_eq!(
            (health.status, health.kind.as_str()),
            (StatusCode::OK, "application/json")
        );
        assert!(
            health
                .body
                .starts_with(r#"{"status":"DEGRADED","services":[{"service":"File Storage","#)
        );
        assert!(health.body.contains(r#""health_issue":"disk full""#));
        assert_eq!(get(&admin, "/health/ready").await.status, StatusCode::OK);
        admin.health.drain();
        assert_eq!(
            get(&admin, "/health/ready").await.status,
            StatusCode::SERVICE_UNAVAILABLE
        );
        let health = get(&admin, "/health").await;
        assert_eq!(health.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(health.body.starts_with(r#"{"status":"DOWN","services":[{"#));
        let live = get(&admin, "/health/live").await;
        assert_eq!(
            (live.status, live.body.as_str()),
            (StatusCode::OK, r#"{"status":"UP","services":[]}"#)
        );
    }

    #[actix_web::test]
    async fn metrics_are_there_only_if_asked_for() {
        let admin = admin();
        let metrics = ask(&admin, true, Method::GET, "/metrics").await;
        assert_eq!((metrics.status, metrics.kind.as_str()), (StatusCode::OK, TEXT_FORMAT));
        assert!(metrics.body.contains("\nferry_build_info{"));
        let hidden = ask(&admin, false, Method::GET, "/metrics").await;
        assert_eq!(
            (hidden.status, hidden.body.as_str()),
            (StatusCode::NOT_FOUND, "404 page not found\n")
        );
        assert_eq!(hidden.kind, "text/plain; charset=utf-8");
    }

    #[actix_web::test]
    async fn head_is_answered_as_get_and_other_methods_name_both() {
        for path in ["/", "/version", "/health", "/health/live", "/health/ready", "/metrics"] {
            assert_eq!(
                ask(&admin(), true, Method::HEAD, path).await.status,
                StatusCode::OK,
                "{path}"
            );
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
                let answer = ask(&admin(), true, method, path).await;
                assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
                assert_eq!(answer.allow.as_deref(), Some("GET, HEAD"));
            }
        }
        for path in ["/health/", "/nothing", "/version/x"] {
            assert_eq!(get(&admin(), path).await.status, StatusCode::NOT_FOUND, "{path}");
        }
    }

    /// One request to a listener, its whole answer.
    async fn talk(address: SocketAddr, request: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_listener_serves_until_it_is_stopped_and_its_port_is_told() {
        let (address, server) = serve("127.0.0.1:0".parse().unwrap(), admin()).unwrap();
        assert_ne!(address.port(), 0);
        let handle = server.handle();
        let server = tokio::spawn(server);
        let get = talk(address, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(get.starts_with("HTTP/1.1 200 ") && get.contains("DEGRADED"), "{get}");
        let head = talk(address, "HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
            "no body: {head}"
        );

        let taken = serve(address, admin()).map(|_| ()).unwrap_err();
        assert!(
            taken.to_string().contains(&address.to_string()),
            "names the address: {taken}"
        );
        handle.stop(true).await;
        server.await.unwrap().unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}
