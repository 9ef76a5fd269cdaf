"""The task family `images`: few-shot classification of images, by three methods and two networks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from adaptax.cli import options
from adaptax.cli.training import Training
from adaptax.errors import InputError

if TYPE_CHECKING:
    import adaptax as ax


@dataclass(frozen=True, kw_only=True)
class Images(Training):
    """Few-shot classification of characters from an Omniglot zip, or of any images, with a convolutional network."""

    task: ClassVar[str] = "images"
    # The first runs adapted the whole network, at a constant outer step size, and knew none of the other options.
    before: ClassVar[Mapping[str, Any]] = {
        **Training.before, "adapt": "everything", "colour": False, "flips": False, "model": "conv4", "norm": "batch",
        "method": "maml",
    }  # fmt: skip
    constants_tasks: ClassVar[int] = 4

    steps: options.Count = 5000
    learning_rate: options.Positive = 1e-3
    tasks_per_step: options.Count = 16
    checkpoint_every: options.Count = 100
    data: options.OptionalData = None
    """Training data (required): an Omniglot zip; or a folder, zip, tar (class/image.jpg) or npz (images, labels)."""
    test_data: options.OptionalData = None
    """Data to judge by, in the same form; alphabets or classes that are also in --data are left out (default: --data)."""
    size: Annotated[options.OptionalInt, options.Whole(16, 1024)] = None
    """Side of the images in pixels (default: 84; a zip without this option is read as Omniglot's, at 28)."""
    colour: bool = False
    """Whether images have three channels."""
    split: options.OptionalName = None
    """Train on the classes below the folder, or in the list, of this name only (default: all)."""
    test_split: options.OptionalName = None
    """Judge on the classes of this name in --test-data, or in --data if that is not given (default: all)."""
    validation: options.OptionalName = None
    """Classes to judge on every --evaluate-every meta-steps, so that the best network is kept: a number of classes of --data
    (alphabets of an Omniglot zip), drawn by --seed; or the name of an alphabet or a split of --data (default: none)."""
    cache: options.UnsavedPath = None
    """Folder where images are prepared once and mapped into memory (default: they are read anew)."""
    ways: Annotated[int, options.Whole(2)] = 5
    """Classes of a task."""
    shots: options.Count = 1
    """Support images of each class."""
    queries: options.Count = 5
    """Target images of each class."""
    method: Literal["maml", "prototypical", "pretrain"] = "maml"
    """maml; prototypical: no adaptation, images go to the nearest class mean of the features (--inner-steps 0); pretrain:
    a classifier of all training classes, fine-tuned when it is judged by up to 2 N steps of --stepsize NUMBER."""
    model: options.NetworkName = "conv4"
    """The network; or a function of your own, called as function(outputs, key=..., image=(height, width, channels)), that
    returns one: any pytree that takes images (n, height, width, channels) to outputs (n, outputs)."""
    channels: options.Count = 32
    """Channels of conv4's blocks, or of the first of resnet12's."""
    norm: Literal["batch", "group", "layer"] = "batch"
    """Normalise over all images at hand (batch: predictions are then transductive), or over each image by itself."""
    head: Literal["per-class", "shared"] = "shared"
    """Whether the inner steps begin with a class vector for each class, or with one for all."""
    adapt: Literal["head", "everything"] = "head"
    """The part that the inner steps change (pretrain: that fine-tuning changes): the last layer, or the whole network."""
    rotations: bool = True
    """Train on each class turned by 90, 180 and 270 degrees as three more classes."""
    flips: bool = False
    """Train on images of which half are mirrored, left to right."""
    distort: bool = True
    """Train on images under random affine maps."""
    angle: options.NotNegative = 0.25
    """Largest angle of a distortion, in radians."""
    scale: Annotated[float, options.Real(least=0, below=1)] = 0.2
    """Largest relative change of size of a distortion."""
    shift: options.NotNegative = 2.0
    """Largest shift of a distortion, in pixels."""
    shear: options.NotNegative = 0.0
    """Largest shear of a distortion."""

    def check_together(self) -> None:
        if self.data is None:
            raise InputError("There is nothing to train on: add --data PATH, an Omniglot zip or a folder of class folders.")
        if self.method == "prototypical" and self.inner_steps:
            raise InputError("--method prototypical takes no inner steps: add --inner-steps 0.")
        if self.method != "maml" and self.head != "shared":
            raise InputError(f"--head {self.head} is for --method maml: leave it out for {self.method}.")
        if self.method == "prototypical" and self.adapt != "head":
            raise InputError("--method prototypical adapts nothing: leave out --adapt.")
        if self.method == "pretrain" and options.is_rule(self.stepsize):
            raise InputError("--method pretrain is fine-tuned with a fixed step size: give --stepsize a number such as 0.1.")
        if self.method == "pretrain" and self.validation is not None:
            raise InputError("--method pretrain is not chosen by validation: leave out --validation.")
        if self.validation is not None and self.evaluate_every is None:
            raise InputError("--validation needs --evaluate-every to say when the network is judged: add --evaluate-every 100.")

    def kinks(self) -> str | None:
        return {"conv4": "relu units and max pools", "resnet12": "leaky relu units and max pools"}.get(self.model)

    def build(self):
        import adaptax as ax
        from adaptax.cli.building import Built, initial_key, inner_of, method_of, optimizer_of
        from adaptax.cli.families.image_data import how_read, judged_on, load
        from adaptax.models.protocol import TakesGiven, offers

        train, validation, test, left_out = load(self)
        sizes = (self.ways, self.shots, self.queries)
        distortion = ax.tasks.Affine(self.angle, self.scale, self.shift, self.shear) if self.distort else None
        problem = ax.tasks.few_shot(train, *sizes, rotations=self.rotations, distortion=distortion, flips=self.flips)
        # Images to judge by are neither turned nor distorted.
        held_out = ax.tasks.few_shot(test, *sizes, rotations=False)
        chosen_by = None if validation is None else ax.tasks.few_shot(validation, *sizes, rotations=False)
        calibrated_on = problem
        if self.method == "prototypical":
            problem, held_out = ax.tasks.prototypical(problem), ax.tasks.prototypical(held_out)
            chosen_by = None if chosen_by is None else ax.tasks.prototypical(chosen_by)
        start = ax.models.shared_head(self.ways) if self.head == "shared" else None
        inner = inner_of(self, adapt=_in_head if self.adapt == "head" else None, start=start)
        if start is not None and isinstance(inner.stepsize, ax.stepsize.Auto):
            # The order of a task's classes means nothing, so none has step sizes of its own.
            by_array: Any = replace(inner.stepsize, per="leaf")
            inner = inner.with_stepsize(by_array)
        trained, outputs, tuned = inner, 1 if self.head == "shared" else self.ways, None
        if self.method == "pretrain":
            # A classifier of all training classes, which is judged with a new head that all classes share at first.
            problem = ax.tasks.joint_classification(problem)
            trained, outputs, tuned = ax.Inner(0, 1.0), problem.loss.ways, _FreshHead(inner)
        params = self._network(outputs, held_out, initial_key(self.seed))
        calibration = None
        # Predictions by the statistics of the support set too, where the network can be given statistics.
        if self.norm == "batch" and self.method != "prototypical" and offers(params, TakesGiven):
            held_out, calibration = ax.tasks.both_accuracies(held_out), calibrated_on
        return Built(
            problem, params, method_of(self, trained), optimizer_of(self), held_out, judged_on(train, test), left_out,
            validation=chosen_by, calibration=calibration, tuned=tuned,
            reading={"images": how_read(train) | self._own(outputs)},
        )  # fmt: skip

    def _own(self, outputs: int) -> dict[str, Any]:
        """What a network of the user's own is made by, for those who load what was trained."""
        return {} if self.model in options.NetworkText.known else {"network": {"function": self.model, "outputs": outputs}}

    def _network(self, outputs: int, problem: "ax.FiniteSum", key: Any) -> Any:
        """The network that is asked for, of the images' size."""
        import jax

        import adaptax as ax
        from adaptax.cli.families.own_network import own_network

        images = jax.eval_shape(problem.sample_task, jax.random.key(0)).support[0]
        if self.model in options.NetworkText.known:
            make = {"conv4": ax.models.conv4, "resnet12": ax.models.resnet12}[self.model]
            return make(outputs, key=key, channels=self.channels, image=images.shape[1:], norm=self.norm)
        return own_network(self.model, outputs, key, images)


@dataclass(frozen=True)
class _FreshHead:
    """From a state to its network with a new head, and the inner loop that fine-tunes it."""

    inner: "ax.Inner"

    def __call__(self, state: Any) -> tuple[Any, "ax.Inner"]:
        import adaptax as ax

        return ax.models.fresh_head(state.params), self.inner


def _in_head(path: str) -> bool:
    return path.startswith("head")
