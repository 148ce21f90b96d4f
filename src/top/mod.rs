//! The terminal view: what `agft top` and `agft demo --tui` show, as a drawing into a buffer of cells.
//!
//! Pure: [`Model`] is told what the daemon said and which keys were pressed, [`draw`] makes a picture of it for a given
//! size and moment. Terminal, socket and clock are the business of `cli::top`.
//!
//! Every text of the picture can be wider than its place, every number unknown, every size too small: what does not fit
//! is cut with a mark, what is unknown says so.

mod chart;
mod curves;
mod draw;
mod header;
mod model;
mod panes;
mod text;

pub use draw::draw;
pub(crate) use model::Action;
pub use model::{Key, Model};
pub use text::Theme;

#[cfg(test)]
mod tests;
