//! What every implementation of a trait of `shared` must do. Each contract is a list of cases that take a site: the
//! place where one implementation keeps its data, fresh for each case, opened as often as a case needs processes.

pub mod bus;
pub mod records;
pub(crate) mod sample;
pub mod sqlite;
pub mod store;
