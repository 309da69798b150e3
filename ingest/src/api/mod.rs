//! What is told of uploads beside TUS.

mod info;

pub(crate) use info::info;
