//! What proves a store of your own: the cases in [`store`].

pub mod store;
