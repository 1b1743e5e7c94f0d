//! Slow, obvious twins of what the data plane does with packets, for the fuzz targets and the simulation. They share no
//! code with it, so that a mistake would have to be made twice.

pub(crate) mod delivery;
pub(crate) mod kernel;
pub(crate) mod packet;
