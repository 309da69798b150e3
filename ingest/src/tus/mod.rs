//! The TUS 1.0.0 protocol: headers in, a file per chapter of the specification, answers out. Spec: tus.md.

mod body;
mod core;
mod creation;
mod download;
mod error;
mod headers;
mod routes;
mod termination;
mod trace;

pub(crate) use routes::{Tus, serve};

/// The protocol's only version.
const VERSION: &str = "1.0.0";
/// What this server has of the protocol's extensions.
const EXTENSIONS: &str = "creation,creation-with-upload,creation-defer-length,termination";
