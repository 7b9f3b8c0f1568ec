//! ONNX files: reading a `ModelProto` into a [`Graph`](crate::ir::Graph) and writing graphs out as plain ONNX.

mod artifacts;
mod attrs;
mod changes;
mod computed_once;
mod emit;
mod evidence;
mod external;
mod fixed;
mod import;
mod inline;
mod laid_out;
mod merged;
mod outputs;
mod record;
mod roles;
mod rules;
mod tensor;
mod upgrade;

pub(crate) use changes::change_between;
pub use emit::{Weights, emit, save, save_to_temporary};
pub(crate) use external::inline_data;
pub(crate) use import::declared;
pub use import::{Model, from_proto, import};
pub use outputs::LeftOut;
pub(crate) use outputs::of_tensors;
pub(crate) use record::is_generated;
pub(crate) use roles::COMPUTED;
pub use roles::{Role, RoleReason, Untied};
pub use tensor::{to_proto, to_tensor};
