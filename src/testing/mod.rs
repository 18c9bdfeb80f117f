//! What proves a store of your own: the cases in [`store`], and random operations in
//! [`differential`].

pub mod differential;
pub mod store;
