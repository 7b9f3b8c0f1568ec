//! A head of as many classes as a recipe asks for.

use super::data::at_length;
use super::recipe::Recipe;
use super::run::Observer;
use crate::adapt::{append_head, replace_head};
use crate::engine::Engine;
use crate::error::Result;
use crate::export::with_values;
use crate::ir::Graph;
use crate::onnx::{Model, from_proto};
use crate::step::{Origin, prepare};
use crate::trace::Sizes;
use crate::wording::count;

/// The graph to train, with a head of as many classes as the recipe asks for: the last linear layer gets new parameters, or a
/// layer is appended. `model` becomes the one with this head, so that it is exported even where it is not trained. With a layer
/// appended, the output that the recipe names is its embedding, and the logits are the new ones.
pub(super) fn with_head(
    model: &mut Model,
    recipe: &mut Recipe,
    sizes: &Sizes,
    engine: &Engine,
    observer: &mut dyn Observer,
) -> Result<Graph> {
    let Some(classes) = recipe.num_classes else { return Ok(model.graph.clone()) };
    if recipe.embedding.is_none() {
        let mut graph = model.graph.clone();
        let found = at_length(recipe, sizes, |sizes| prepare(&graph, sizes, recipe.ends(), engine));
        let origin = found.ok().and_then(|p| p.origin).filter(|o| graph.find(&o.value).is_some());
        let kept = |o: &&Origin| !o.unproven() && (o.classes == classes || !o.has_a_layer_of_classes());
        if let Some(origin) = origin.as_ref().filter(kept) {
            return origin.of_classes(classes).map(|()| model.graph.clone());
        }
        let name = origin.as_ref().map(|o| o.value.as_str()).or(recipe.output.as_deref());
        match replace_head(&mut graph, name, classes, recipe.seed) {
            Ok(changed) => {
                if changed {
                    observer.note(&format!("the head was replaced by one of {}", count(classes, "class")));
                    let head = graph.params().into_iter().filter(|v| graph.tensor(*v) != model.graph.tensor(*v));
                    let head = head.filter_map(|v| Some((graph[v].name.clone(), graph.tensor(v)?.clone()))).collect();
                    *model = from_proto(&model.path, with_values(model, &head)?)?;
                }
                return Ok(model.graph.clone());
            }
            // The model's own loss does not see another head.
            Err(e) if recipe.ends().loss.is_some() => return Err(e),
            // Nor is there a use for a layer on top of probabilities.
            Err(e) if origin.is_some_and(|o| !o.unproven()) => return Err(e),
            Err(_) => {}
        }
    }
    let name = recipe.embedding.as_deref().or(recipe.output.as_deref());
    let append = |sizes: &Sizes| append_head(model, name, classes, recipe.seed, sizes, engine);
    let appended = at_length(recipe, sizes, append)?;
    observer.note(&appended.note);
    if recipe.output.is_some() {
        recipe.embedding = Some(appended.embedding);
        recipe.output = Some(appended.logits);
    }
    *model = appended.model;
    Ok(model.graph.clone())
}
