//! What the daemon and the supervisor of servers, two programs of one host, have to do alike: make text from
//! outside harmless ([`text`]), tell whether a stranger could have written a file ([`trust`]), speak of
//! instances over the daemon's socket ([`instances`]), and serve a web page ([`page`]).

pub mod instances;
pub mod page;
pub mod text;
pub mod trust;
