"""The methods of TorchJD 0.18 that read a Gram, one class each; see `surgery` for what they share."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from gradlab.weighting.base import WEIGHTINGS
from gradlab.weighting.surgery import Index, Surgery


@WEIGHTINGS.register("aligned_mtl")
class AlignedMTL(Surgery):
    """Independent components (Senushkin et al. 2023, arXiv 2305.19000): principal axes of one length."""

    torchjd = "AlignedMTLWeighting"


@WEIGHTINGS.register("cagrad")
class CAGrad(Surgery):
    """Conflict-averse gradient (Liu et al. 2021, arXiv 2110.14048, alg. 1): worst progress in a ball about the mean."""

    torchjd, options = "CAGradWeighting", ("c",)


@WEIGHTINGS.register("dualproj")
class DualProj(Surgery):
    """Mean gradient projected onto the dual cone (Lopez-Paz and Ranzato 2017, arXiv 1706.08840)."""

    torchjd = "DualProjWeighting"


@WEIGHTINGS.register("fairgrad")
class FairGrad(Surgery):
    """Fair resource allocation (Ban and Ji 2024, arXiv 2402.15638): Gram w = w^(-1/alpha)."""

    torchjd, options = "FairGradWeighting", ("alpha",)


@WEIGHTINGS.register("imtl_g")
class IMTLG(Surgery):
    """Impartial (Liu et al. 2021, ICLR): equal projections onto the objectives' directions."""

    torchjd = "IMTLGWeighting"


@WEIGHTINGS.register("krum")
class Krum(Surgery):
    """The gradient closest to its neighbours alone (Blanchard et al. 2017, NeurIPS)."""

    torchjd, least = "KrumWeighting", 3

    def solve(self, gram_AA: torch.Tensor, active: Index) -> torch.Tensor:
        return self.method(n_byzantine=0)(gram_AA)


@WEIGHTINGS.register("mgda")
class MGDA(Surgery):
    """Shortest vector of the convex hull (Desideri 2012; Sener and Koltun 2018, arXiv 1810.04650, alg. 2)."""

    torchjd = "MGDAWeighting"


@WEIGHTINGS.register("pcgrad")
class PCGrad(Surgery):
    """Gradient surgery (Yu et al. 2020, arXiv 2001.06782, alg. 1): conflicting parts projected out in random order."""

    torchjd = "PCGradWeighting"


@WEIGHTINGS.register("random")
class Random(Surgery):
    """Random loss weighting (Lin et al. 2021, arXiv 2111.10603, alg. 2): softmax of normal draws. The baseline."""

    torchjd = "RandomWeighting"


@WEIGHTINGS.register("upgrad")
class UPGrad(Surgery):
    """Unconflicting projections, averaged (Quinton and Rey 2024, arXiv 2406.16232)."""

    torchjd = "UPGradWeighting"


@WEIGHTINGS.register("gradvac")
class GradVac(Surgery):
    """Gradient vaccine (Wang et al. 2020, arXiv 2010.05874, alg. 1): PCGrad toward a running mean of each cosine."""

    torchjd, options = "GradVacWeighting", ("beta",)

    def solve(self, gram_AA: torch.Tensor, active: Index) -> torch.Tensor:
        method, pairs = self.method(), np.ix_(active, active)
        target_KK = self.memory.get("target_KK", np.zeros((len(self.labels), len(self.labels)))).copy()
        # TorchJD keeps the running mean in a buffer that it makes anew when size or type differ.
        method._phi_t, method._state_key = torch.from_numpy(target_KK[pairs]), (len(active), gram_AA.dtype)
        weights_A = method(gram_AA)
        target_KK[pairs] = method._phi_t.numpy()
        self.memory["target_KK"] = target_KK
        return weights_A


@WEIGHTINGS.register("nash_mtl")
class NashMTL(Surgery):
    """Bargaining (Navon et al. 2022, arXiv 2202.01017, alg. 1): Gram w = 1/w, from the last solution on.

    TorchJD's reads a Jacobian, but only through its Gram: any square root of the Gram serves.
    """

    torchjd, options = "NashMTL", ("max_norm",)

    def solve(self, gram_AA: torch.Tensor, active: Index) -> torch.Tensor:
        method = self.method(n_tasks=len(active)).weighting
        last_K = self.memory.get("solution_K", np.ones(len(self.labels))).copy()
        method.prvs_alpha = last_K[active]
        value_A, vector_AA = torch.linalg.eigh(gram_AA)
        with warnings.catch_warnings():  # cvxpy's note that solving again will be as slow as the first time
            warnings.filterwarnings("ignore", message="You are solving a parameterized problem that is not DPP")
            weights_A = method(vector_AA * value_A.clamp(min=0).sqrt())
        last_K[active] = method.prvs_alpha
        self.memory["solution_K"] = last_K
        return weights_A


@WEIGHTINGS.register("pcd")
class PCD(Surgery):
    """One objective followed, the others' normalized progress guaranteed (PCD, 2026, arXiv 2606.29521)."""

    torchjd, options = "PCDWeighting", ("tau",)

    def solve(self, gram_AA: torch.Tensor, active: Index) -> torch.Tensor:
        primary = self.labels.index(self.config.primary)
        if primary not in active:
            return torch.ones(len(active))
        order = np.argsort(active != primary, kind="stable")  # TorchJD's primary objective is the first
        norms_K = self.memory.get("squared_norm_K", np.zeros(len(self.labels))).copy()
        method = self.method()
        method._sq_norm_ema = torch.from_numpy(norms_K[active[order]])
        method._n_steps = torch.tensor(int(self.memory.get("seen", np.zeros(1))[0]))
        method._state_key = len(active)
        weights_A = torch.empty(len(active), dtype=gram_AA.dtype)
        weights_A[order] = method(gram_AA[np.ix_(order, order)])
        norms_K[active[order]] = method._sq_norm_ema.numpy()
        self.memory |= {"squared_norm_K": norms_K, "seen": np.array([float(method._n_steps)])}
        return weights_A
