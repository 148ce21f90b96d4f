//! The shell that runs the pure step in real time.
//!
//! Four things run beside each other, so that none can delay another: the tick (this task), the scrape ([`feed`]), the
//! sensors ([`sampler`], a thread), the clock writes ([`actuator`], a thread that owns the lease). Files are written by a
//! fifth (`recorder`), and a sixth watches over these and over the guardian (`watch`).

pub mod actuator;
pub(crate) mod clients;
pub mod clock;
mod closed;
pub mod feed;
pub(crate) mod follow;
pub mod host;
pub mod log;
pub(crate) mod notify;
mod pace;
pub(crate) mod park;
mod record;
pub(crate) mod recorder;
pub(crate) mod reload;
pub mod sampler;
pub mod show;
pub(crate) mod steps;
pub mod tick;
pub(crate) mod trust;
pub(crate) mod watch;

pub use host::{Host, drive};
pub use tick::Group;
