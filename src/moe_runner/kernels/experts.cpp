// The experts of one layer, fp32 on a CPU: selection of experts and their outputs in inference, and
// the three products over sorted choices of which training consists.
//
// T tokens, D d_model, E experts, F neurons of one expert, K selected experts, S = T * K choices
//
// No weight is copied or packed: a row of keys, ups or values lies together in memory, and so do
// the rows of an expert, so that the parameters themselves are what a product wants to read. The
// first products run along D (a tile of tokens x neurons, each a vector of partial sums), the
// second ones too (a tile of tokens x columns, summed over the neurons). Every sum has one order,
// whatever the number of threads: the same bits come out.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats of a vector
#else
constexpr int W = 8;
#endif

typedef float vec __attribute__((vector_size(W * 4)));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef float loose __attribute__((vector_size(W * 4), aligned(4), may_alias));  // at any address

inline vec load(const float* p) { return *reinterpret_cast<const loose*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<loose*>(p) = v; }

// Have a value in a register: else the compiler reads it from memory again for each of its uses,
// and a tile has more loads than products.
inline void hold(vec& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
}

inline vec all(float value) { return vec{} + value; }

// Sums of N vectors, N up to 3. The order is the same for any N.
template <int N>
inline void sums(const vec* v, float* out) {
#if defined(__AVX__)
  __m256 half[4] = {};
  for (int j = 0; j < N; ++j) {
#if defined(__AVX512F__)
    const __m512 whole = reinterpret_cast<const __m512&>(v[j]);
    half[j] = _mm256_add_ps(
        _mm512_castps512_ps256(whole),
        _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(whole), 1)));
#else
    half[j] = reinterpret_cast<const __m256&>(v[j]);
#endif
  }
  const __m256 pairs = _mm256_hadd_ps(
      _mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  alignas(16) float four[4];
  _mm_store_ps(four, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
  for (int j = 0; j < N; ++j) out[j] = four[j];
#else
  for (int j = 0; j < N; ++j) {
    out[j] = 0;
    for (int lane = 0; lane < W; ++lane) out[j] += v[j][lane];
  }
#endif
}

// Compute exp to about one unit in the last place: 2^n times a Taylor polynomial on |r| < 0.35.
inline vec exponential(vec x) {
  x = x < -87.0f ? all(-87.0f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const vec n = (x * 1.44269504f + magic) - magic;
  const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  vec p = all(1.0f / 5040.0f);
  for (const float c : {1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, 1 / 2.f, 1.f, 1.f}) p = p * r + c;
  const ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
  vec scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

inline vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

// Compute erf; largest error 1.5e-7. Abramowitz and Stegun, Handbook, formula 7.1.26.
inline vec error_function(vec x) {
  const vec z = x < 0.0f ? -x : x;
  const vec t = 1.0f / (1.0f + 0.3275911f * z);
  vec p = all(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
  const vec e = 1.0f - p * t * exponential(-z * z);
  return x < 0.0f ? -e : e;
}

// The numbers that `moe/kernel_experts.py` gives to its words.
enum Activation : int64_t { RELU = 0, SILU = 1, GELU = 2, GELU_TANH = 3, QUICK_GELU = 4, NONE = 5 };
enum Select : int64_t { TOP = 0, BOTTOM = 1, NOT_TOP = 2 };
enum Weighting : int64_t { ONES = 0, SOFTMAX = 1, PROBABILITY = 2 };

inline vec activate(vec x, int64_t kind) {
  switch (kind) {
    case NONE:
      return x;
    case RELU:
      return x < 0.0f ? vec{} : x;  // NaN stays NaN
    case SILU:
      return x * sigmoid(x);
    case GELU:
      return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case GELU_TANH:  // (1 + tanh(y)) / 2 = sigmoid(2 y)
      return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
    default:
      return x * sigmoid(1.702f * x);
  }
}

// Room for numbers that a thread needs again and again. It is kept: to get it anew, page by page,
// would take as long as the products. USE: each has its own.
enum Use { PANELS, STRIP, HIDDEN, ROWS };

template <Use USE>
float* room(int64_t size) {
  thread_local std::vector<float> kept;
  if (static_cast<int64_t>(kept.size()) < size) kept.resize(size);
  return kept.data();
}

// One layer's weights.
struct Experts {
  const float* keys;
  const float* values;
  const float* key_bias;  // each may be null
  const float* ups;
  const float* up_bias;
  int64_t count, size, d_model, activation;
};

constexpr int64_t LANES = 24;   // neurons that go through at once: with 8 tokens, fit for the caches
constexpr int64_t PITCH = 32;   // numbers between two tokens' rows of such: whole vectors
constexpr int64_t TOKENS = 8;
constexpr int64_t MANY = 16;    // tokens of an expert from which turning its weights round pays
constexpr int64_t AT_ONCE = 64;  // most of its tokens that go through at once
constexpr int64_t DEPTH = 1536 / W;  // numbers of D that go through at once: 3 panels, 18 KiB
constexpr int64_t BLOCK = 512;  // most tokens at once: their activations stay in the cache
constexpr int64_t COLUMNS = 96;
constexpr int64_t NEAR = 6144;  // numbers of strips of values that go through at once: 24 KiB
constexpr int64_t FEW = 16;     // most tokens for which each expert makes rows of its own

// Dot products of M rows x and N consecutive rows w.
template <int M, int N>
inline void dots(const float* const* x, const float* w, int64_t d, float* out, int64_t pitch) {
  vec acc[M][N] = {};
  int64_t k = 0;
  for (; k + W <= d; k += W) {
    vec rows[N];
    for (int j = 0; j < N; ++j) hold(rows[j] = load(w + j * d + k));
    for (int i = 0; i < M; ++i) {
      vec left = load(x[i] + k);
      hold(left);
      for (int j = 0; j < N; ++j) acc[i][j] += left * rows[j];
    }
  }
  for (int i = 0; i < M; ++i) {
    sums<N>(acc[i], out + i * pitch);
    for (int j = 0; j < N; ++j)
      for (int64_t rest = k; rest < d; ++rest) out[i * pitch + j] += x[i][rest] * w[j * d + rest];
  }
}

constexpr int64_t AHEAD = 1024;  // numbers: so far ahead memory is asked for what comes in order

// Dot products of one row x and the rows of w, one after another: as memory gives them.
inline void dots_of_one(const float* x, const float* w, int64_t d, int64_t rows, float* out) {
  for (int64_t j = 0; j < rows; ++j, w += d) {
    vec acc[4] = {};
    int64_t k = 0;
    for (; k + 4 * W <= d; k += 4 * W) {
      for (int u = 0; u < 4 * W; u += 16) __builtin_prefetch(w + k + u + AHEAD);
      for (int u = 0; u < 4; ++u) acc[u] += load(x + k + u * W) * load(w + k + u * W);
    }
    for (; k + W <= d; k += W) acc[0] += load(x + k) * load(w + k);
    const vec both = (acc[0] + acc[1]) + (acc[2] + acc[3]);
    float total;
    sums<1>(&both, &total);
    for (; k < d; ++k) total += x[k] * w[k];
    out[j] = total;
  }
}

template <int M>
inline void dots_of_some(
    const float* const* x, const float* w, int64_t d, int64_t rows, float* out, int64_t pitch) {
  int64_t j = 0;
  for (; j + 3 <= rows; j += 3) dots<M, 3>(x, w + j * d, d, out + j, pitch);
  for (; j < rows; ++j) dots<M, 1>(x, w + j * d, d, out + j, pitch);
}

// Pre-activations of up to TOKENS tokens and up to LANES neurons, out (TOKENS, PITCH).
inline void project(
    const float* const* x, int64_t tokens, const float* w, const float* bias, int64_t d,
    int64_t rows, float* out) {
  if (tokens == 1) {
    dots_of_one(x[0], w, d, rows, out);
  } else {
    int64_t j = 0;
    if (tokens == TOKENS)  // three rows of w serve all the tokens while they are near
      for (; j + 3 <= rows; j += 3) {
        dots<4, 3>(x, w + j * d, d, out + j, PITCH);
        dots<4, 3>(x + 4, w + j * d, d, out + 4 * PITCH + j, PITCH);
      }
    int64_t i = 0;
    const float* rest = w + j * d;
    for (; i + 4 <= tokens; i += 4)
      dots_of_some<4>(x + i, rest, d, rows - j, out + i * PITCH + j, PITCH);
    switch (tokens - i) {
      case 3: dots_of_some<3>(x + i, rest, d, rows - j, out + i * PITCH + j, PITCH); break;
      case 2: dots_of_some<2>(x + i, rest, d, rows - j, out + i * PITCH + j, PITCH); break;
      case 1: dots_of_some<1>(x + i, rest, d, rows - j, out + i * PITCH + j, PITCH); break;
    }
  }
  if (bias != nullptr)
    for (int64_t i = 0; i < tokens; ++i)
      for (int64_t j = 0; j < rows; ++j) out[i * PITCH + j] += bias[j];
}

// Transpose 8 rows of 8 numbers: w[r * d + k] -> out[k * W + r].
inline void transpose_eight(const float* w, int64_t d, float* out) {
  typedef float eight __attribute__((vector_size(32)));
  typedef float loose_eight __attribute__((vector_size(32), aligned(4), may_alias));
  eight a[8], b[8];
  for (int r = 0; r < 8; ++r) a[r] = *reinterpret_cast<const loose_eight*>(w + r * d);
  for (int r = 0; r < 8; r += 2) {
    b[r] = __builtin_shufflevector(a[r], a[r + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    b[r + 1] = __builtin_shufflevector(a[r], a[r + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int r = 0; r < 8; r += 4)
    for (int i = 0; i < 2; ++i) {
      a[r + i] = __builtin_shufflevector(b[r + i], b[r + i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[r + i + 2] = __builtin_shufflevector(b[r + i], b[r + i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int i = 0; i < 4; ++i) {
    b[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    b[i + 4] = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int k = 0; k < 8; ++k) *reinterpret_cast<loose_eight*>(out + k * W) = b[k];
}

// Rows of weights as panels of W columns, (panels, D, W): what many tokens are multiplied by.
struct Panels {
  float* data;
  int64_t d, rows = 0;

  // Append rows; what a last panel lacks are zeros.
  void add(const float* w, int64_t count) {
    for (int64_t r = 0; r < count;) {
      float* out = data + rows / W * d * W + rows % W;
      if (rows % W == 0 && count - r < W) std::fill_n(out, d * W, 0.0f);
      const bool whole = rows % 8 == 0 && count - r >= 8;
      int64_t k = 0;
      if (whole)
        for (; k + 8 <= d; k += 8) transpose_eight(w + r * d + k, d, out + k * W);
      for (; k < d; ++k)
        for (int64_t i = 0; i < (whole ? 8 : 1); ++i) out[k * W + i] = w[(r + i) * d + k];
      rows += whole ? 8 : 1;
      r += whole ? 8 : 1;
    }
  }
};

// Add to out (M, N * W) the products of M rows x[low..high) and N panels.
template <int M, int N>
inline void multiply(
    const float* const* x, const float* panels, int64_t d, int64_t low, int64_t high, float* out,
    int64_t pitch) {
  vec acc[M][N];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) acc[i][j] = load(out + i * pitch + j * W);
  for (int64_t k = low; k < high; ++k) {
    vec row[N];
    for (int j = 0; j < N; ++j) hold(row[j] = load(panels + (j * d + k) * W));
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) acc[i][j] += row[j] * x[i][k];
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) store(out + i * pitch + j * W, acc[i][j]);
}

template <int N>
inline void multiply_rows(
    const float* const* x, int64_t tokens, const float* panels, int64_t d, int64_t low,
    int64_t high, float* out, int64_t pitch) {
  int64_t i = 0;
  for (; i + 4 <= tokens; i += 4) {
    for (int64_t next = i + 4; next < std::min(i + 8, tokens); ++next)
      for (int64_t k = low; k < high; k += 16) __builtin_prefetch(x[next] + k);
    multiply<4, N>(x + i, panels, d, low, high, out + i * pitch, pitch);
  }
  switch (tokens - i) {
    case 3: multiply<3, N>(x + i, panels, d, low, high, out + i * pitch, pitch); break;
    case 2: multiply<2, N>(x + i, panels, d, low, high, out + i * pitch, pitch); break;
    case 1: multiply<1, N>(x + i, panels, d, low, high, out + i * pitch, pitch); break;
  }
}

// out (tokens, pitch) = products of rows x and all panels; a part of the panels that fits the
// nearest cache is used by all tokens before the next one.
inline void multiply_all(
    const float* const* x, int64_t tokens, const Panels& panels, float* out, int64_t pitch) {
  const int64_t d = panels.d, count = (panels.rows + W - 1) / W;
  std::fill_n(out, tokens * pitch, 0.0f);
  for (int64_t low = 0; low < d; low += DEPTH) {
    const int64_t high = std::min(d, low + DEPTH);
    for (int64_t p = 0; p < count; p += 3) {
      const float* from = panels.data + p * d * W;
      float* to = out + p * W;
      switch (std::min<int64_t>(3, count - p)) {
        case 3: multiply_rows<3>(x, tokens, from, d, low, high, to, pitch); break;
        case 2: multiply_rows<2>(x, tokens, from, d, low, high, to, pitch); break;
        case 1: multiply_rows<1>(x, tokens, from, d, low, high, to, pitch); break;
      }
    }
  }
}

// The choices, sorted by expert; those of an expert in the order of their tokens.
struct Plan {
  std::vector<int64_t> first;   // of each expert among the sorted choices, (E + 1)
  std::vector<int64_t> choice;  // of each sorted place, (S,)
  std::vector<int64_t> token;   // of each sorted place, (S,)

  Plan(const int64_t* index, int64_t tokens, int64_t top_k, int64_t experts)
      : first(experts + 1, 0), choice(tokens * top_k), token(tokens * top_k) {
    for (int64_t s = 0; s < tokens * top_k; ++s) ++first[index[s] + 1];
    for (int64_t e = 0; e < experts; ++e) first[e + 1] += first[e];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t t = 0, s = 0; t < tokens; ++t)
      for (int64_t j = 0; j < top_k; ++j, ++s) {
        const int64_t place = next[index[s]]++;
        choice[place] = s;
        token[place] = t;
      }
  }

  // The row of each sorted place's token, of rows of D numbers.
  template <typename T>
  std::vector<T*> rows(T* all, int64_t d) const {
    std::vector<T*> found(token.size());
    for (size_t p = 0; p < token.size(); ++p) found[p] = all + token[p] * d;
    return found;
  }
};

// Carry out items 0..count-1, each by the next thread that is free.
template <typename F>
void share(int64_t count, const F& item) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1)) < count;) item(i);
  });
}

struct Job {
  const Experts& experts;
  const float* x;        // (T, D)
  const float* weights;  // (T, K) or null
  const Plan& plan;

  // Activations of neurons low..high-1 of an expert on all its tokens, times their weights, into
  // rows of F numbers by sorted place.
  void hide(int64_t e, int64_t low, int64_t high, float* hidden) const {
    if (plan.first[e + 1] - plan.first[e] >= MANY)
      hide_many(e, low, high, hidden);
    else
      hide_some(e, low, high, hidden);
  }

  const float* row_of(int64_t place) const {
    return x + plan.token[place] * experts.d_model;
  }

  // Turn pre-activations of a token into what its hidden row holds; up may be null.
  void finish(int64_t place, int64_t low, int64_t rows, float* pre, const float* up,
              float* hidden) const {
    const float weight = weights == nullptr ? 1.0f : weights[plan.choice[place]];
    alignas(64) float done[PITCH];
    for (int64_t j = 0; j < rows; j += W) {  // what is beyond `rows` is computed for nothing
      vec h = activate(load(pre + j), experts.activation);
      if (up != nullptr) h *= load(up + j);
      store(done + j, h * weight);
    }
    std::memcpy(hidden + place * experts.size + low, done, rows * sizeof(float));
  }

  void hide_some(int64_t e, int64_t low, int64_t high, float* hidden) const {
    const int64_t d = experts.d_model, rows = high - low, row = e * experts.size + low;
    alignas(64) float pre[TOKENS * PITCH], up[TOKENS * PITCH];
    for (int64_t p = plan.first[e]; p < plan.first[e + 1]; p += TOKENS) {
      const int64_t tokens = std::min(TOKENS, plan.first[e + 1] - p);
      const float* own[TOKENS];
      for (int64_t i = 0; i < tokens; ++i) own[i] = row_of(p + i);
      const float* bias = experts.key_bias == nullptr ? nullptr : experts.key_bias + row;
      project(own, tokens, experts.keys + row * d, bias, d, rows, pre);
      if (experts.ups != nullptr) {
        bias = experts.up_bias == nullptr ? nullptr : experts.up_bias + row;
        project(own, tokens, experts.ups + row * d, bias, d, rows, up);
      }
      for (int64_t i = 0; i < tokens; ++i)
        finish(p + i, low, rows, pre + i * PITCH, experts.ups == nullptr ? nullptr : up + i * PITCH,
               hidden);
    }
  }

  void hide_many(int64_t e, int64_t low, int64_t high, float* hidden) const {
    const int64_t d = experts.d_model, rows = high - low, row = e * experts.size + low;
    const bool gated = experts.ups != nullptr;
    constexpr int64_t WIDE = 2 * PITCH + W;  // numbers between two tokens: gate, then up
    Panels panels{room<PANELS>((gated ? 2 : 1) * (LANES + W) * d), d};
    panels.add(experts.keys + row * d, rows);
    if (gated) panels.add(experts.ups + row * d, rows);
    alignas(64) float pre[AT_ONCE * WIDE];
    for (int64_t p = plan.first[e]; p < plan.first[e + 1]; p += AT_ONCE) {
      const int64_t tokens = std::min(AT_ONCE, plan.first[e + 1] - p);
      const float* own[AT_ONCE];
      for (int64_t i = 0; i < tokens; ++i) own[i] = row_of(p + i);
      multiply_all(own, tokens, panels, pre, WIDE);
      for (int64_t i = 0; i < tokens; ++i) {
        float* of_token = pre + i * WIDE;
        if (experts.key_bias != nullptr)
          for (int64_t j = 0; j < rows; ++j) of_token[j] += experts.key_bias[row + j];
        if (experts.up_bias != nullptr)
          for (int64_t j = 0; j < rows; ++j) of_token[rows + j] += experts.up_bias[row + j];
        finish(p + i, low, rows, of_token, gated ? of_token + rows : nullptr, hidden);
      }
    }
  }
};

// Add to M rows `out` (columns of NV vectors) the products of activations and value rows.
template <int M, int NV>
inline void add_products(
    const float* hidden, int64_t size, const float* values, int64_t d, float* const* out,
    int64_t column) {
  vec acc[M][NV];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < NV; ++j) acc[i][j] = load(out[i] + column + j * W);
  for (int64_t f = 0; f < size; ++f) {
    vec row[NV];
    for (int j = 0; j < NV; ++j) row[j] = load(values + f * d + column + j * W);
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < NV; ++j) acc[i][j] += row[j] * hidden[i * size + f];
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < NV; ++j) store(out[i] + column + j * W, acc[i][j]);
}

template <int M>
inline void add_columns(
    const float* hidden, int64_t size, const float* values, int64_t d, float* const* out,
    int64_t low, int64_t high) {
  int64_t c = low;
  for (; c + 2 * W <= high; c += 2 * W) add_products<M, 2>(hidden, size, values, d, out, c);
  for (; c + W <= high; c += W) add_products<M, 1>(hidden, size, values, d, out, c);
  for (; c < high; ++c)
    for (int i = 0; i < M; ++i)
      for (int64_t f = 0; f < size; ++f) out[i][c] += hidden[i * size + f] * values[f * d + c];
}

// The same for any number of rows. Where they are many, strips of the values are copied together
// first, as many as stay near: rows that lie some KiB apart would push each other out of the cache.
inline void add_rows(
    const float* hidden, int64_t rows, int64_t size, const float* values, int64_t d,
    float* const* out, int64_t low, int64_t high) {
  int64_t c = low;
  const int64_t sixes = rows / 6 * 6;
  if (rows >= MANY) {
    constexpr int64_t WIDE = 2 * W;
    const int64_t most = std::clamp<int64_t>(NEAR / (size * WIDE), 1, COLUMNS / WIDE);
    float* strips = room<STRIP>(most * size * WIDE);
    for (int64_t count; (count = std::min(most, (high - c) / WIDE)) > 0; c += count * WIDE) {
      for (int64_t s = 0; s < count; ++s)
        for (int64_t f = 0; f < size; ++f)
          std::memcpy(strips + (s * size + f) * WIDE, values + f * d + c + s * WIDE,
                      WIDE * sizeof(float));
      for (int64_t i = 0; i < sixes; i += 6) {
        for (int64_t next = i + 6; next < std::min(i + 12, rows); ++next)
          for (int64_t s = 0; s < count; ++s) __builtin_prefetch(out[next] + c + s * WIDE);
        for (int64_t s = 0; s < count; ++s) {
          const int64_t column = c + s * WIDE;
          add_products<6, 2>(hidden + i * size, size, strips + s * size * WIDE - column, WIDE,
                             out + i, column);
        }
      }
    }
  } else {
    for (; sixes > 0 && c + 2 * W <= high; c += 2 * W)
      for (int64_t i = 0; i < sixes; i += 6)
        add_products<6, 2>(hidden + i * size, size, values, d, out + i, c);
  }
  for (int64_t i = 0; i < sixes; i += 6)
    add_columns<6>(hidden + i * size, size, values, d, out + i, c, high);
  hidden += sixes * size;
  out += sixes;
  switch (rows - sixes) {
    case 5: add_columns<5>(hidden, size, values, d, out, low, high); break;
    case 4: add_columns<4>(hidden, size, values, d, out, low, high); break;
    case 3: add_columns<3>(hidden, size, values, d, out, low, high); break;
    case 2: add_columns<2>(hidden, size, values, d, out, low, high); break;
    case 1: add_columns<1>(hidden, size, values, d, out, low, high); break;
  }
}

// Add one row: whole rows of the values, four at a time, as memory gives them.
inline void add_one(
    const float* hidden, int64_t size, const float* values, int64_t d, float* out) {
  int64_t f = 0;
  for (; f + 4 <= size; f += 4, values += 4 * d) {
    int64_t c = 0;
    for (; c + W <= d; c += W) {
      for (int u = 0; u < 4; ++u) __builtin_prefetch(values + (u + 4) * d + c);
      vec acc = load(out + c);
      for (int u = 0; u < 4; ++u) acc += load(values + u * d + c) * hidden[f + u];
      store(out + c, acc);
    }
    for (; c < d; ++c)
      for (int u = 0; u < 4; ++u) out[c] += values[u * d + c] * hidden[f + u];
  }
  for (; f < size; ++f, values += d)
    for (int64_t c = 0; c < d; ++c) out[c] += values[c] * hidden[f];
}

// Blocks of neurons of the experts that have a token: enough items for all threads.
struct Item {
  int64_t expert, low, high, block;
};

std::vector<Item> items_of(const Plan& plan, int64_t experts, int64_t size) {
  std::vector<Item> items;
  for (int64_t e = 0; e < experts; ++e)
    if (plan.first[e + 1] > plan.first[e])
      for (int64_t low = 0; low < size; low += LANES)
        items.push_back({e, low, std::min(size, low + LANES), low / LANES});
  return items;
}

// Few tokens: reading the weights is what costs, so each part of an expert is read once, by one
// thread, which makes a row of output per token; the rows are added up afterwards.
void few_tokens(const Job& job, float* out) {
  const Experts& experts = job.experts;
  const int64_t d = experts.d_model, size = experts.size, choices = job.plan.choice.size();
  const int64_t blocks = (size + LANES - 1) / LANES;
  float* hidden = room<HIDDEN>(choices * size);
  float* rows = room<ROWS>(choices * blocks * d);
  const std::vector<Item> items = items_of(job.plan, experts.count, size);
  share(items.size(), [&](int64_t n) {
    const auto [e, low, high, block] = items[n];
    job.hide(e, low, high, hidden);
    const float* values = experts.values + (e * size + low) * d;
    const int64_t start = job.plan.first[e], count = job.plan.first[e + 1] - start;
    for (int64_t i = 0; i < count; ++i)
      std::fill_n(rows + ((start + i) * blocks + block) * d, d, 0.0f);
    if (count == 1) {
      add_one(hidden + start * size + low, high - low, values, d,
              rows + (start * blocks + block) * d);
      return;
    }
    float* own[FEW];
    float packed[FEW * LANES];
    for (int64_t i = 0; i < count; ++i) {
      own[i] = rows + ((start + i) * blocks + block) * d;
      std::memcpy(packed + i * (high - low), hidden + (start + i) * size + low,
                  (high - low) * sizeof(float));
    }
    add_rows(packed, count, high - low, values, d, own, 0, d);
  });
  for (int64_t p = 0; p < choices; ++p) {
    float* total = out + job.plan.token[p] * d;
    for (int64_t b = 0; b < blocks; ++b) {
      const float* row = rows + (p * blocks + b) * d;
      for (int64_t c = 0; c < d; ++c) total[c] += row[c];
    }
  }
}

// All activations, by parts of experts, into rows of F numbers by sorted place.
void hide_all(const Job& job, float* hidden) {
  const std::vector<Item> items = items_of(job.plan, job.experts.count, job.experts.size);
  share(items.size(), [&](int64_t n) {
    job.hide(items[n].expert, items[n].low, items[n].high, hidden);
  });
}

// Parts of some columns of each row, each with its first and the one after its last.
template <typename F>
void share_columns(int64_t rows, int64_t d, int64_t columns, const F& item) {
  const int64_t parts = (d + columns - 1) / columns;
  share(rows * parts, [&](int64_t n) {
    const int64_t low = n % parts * columns;
    item(n / parts, low, std::min(d, low + columns));
  });
}

// Add to the tokens' rows `out` (T, D) the products of all activations and the values, by columns:
// no two threads write the same number.
void combine_all(
    const Plan& plan, const float* hidden, const float* values, int64_t experts, int64_t size,
    int64_t d, float* out) {
  const std::vector<float*> rows = plan.rows(out, d);
  share_columns(1, d, COLUMNS, [&](int64_t, int64_t low, int64_t high) {
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t start = plan.first[e], count = plan.first[e + 1] - start;
      if (count > 0)
        add_rows(hidden + start * size, count, size, values + e * size * d, d,
                 rows.data() + start, low, high);
    }
  });
}

// Many tokens: first all activations, then the outputs.
void many_tokens(const Job& job, float* out) {
  const Experts& experts = job.experts;
  float* hidden = room<HIDDEN>(job.plan.choice.size() * experts.size);
  hide_all(job, hidden);
  combine_all(job.plan, hidden, experts.values, experts.count, experts.size, experts.d_model, out);
}

// Tokens and columns of them that are copied together for an outer product: long enough parts of
// rows for memory to foresee them.
constexpr int64_t PIECE = 64;
constexpr int64_t OUTER_COLUMNS = 768;

// Add to M rows of `out` the products of a number of each token and 2 W of its columns.
template <int M>
inline void add_outer(
    const float* hidden, int64_t size, const float* strip, int64_t tokens, float* out, int64_t d) {
  vec acc[M][2];
  for (int m = 0; m < M; ++m)
    for (int j = 0; j < 2; ++j) acc[m][j] = load(out + m * d + j * W);
  for (int64_t t = 0; t < tokens; ++t) {
    vec row[2];
    for (int j = 0; j < 2; ++j) hold(row[j] = load(strip + (t * 2 + j) * W));
    for (int m = 0; m < M; ++m)
      for (int j = 0; j < 2; ++j) acc[m][j] += row[j] * hidden[t * size + m];
  }
  for (int m = 0; m < M; ++m)
    for (int j = 0; j < 2; ++j) store(out + m * d + j * W, acc[m][j]);
}

inline void add_outer_rows(
    int64_t rows, const float* hidden, int64_t size, const float* strip, int64_t tokens, float* out,
    int64_t d) {
  switch (rows) {
    case 6: return add_outer<6>(hidden, size, strip, tokens, out, d);
    case 5: return add_outer<5>(hidden, size, strip, tokens, out, d);
    case 4: return add_outer<4>(hidden, size, strip, tokens, out, d);
    case 3: return add_outer<3>(hidden, size, strip, tokens, out, d);
    case 2: return add_outer<2>(hidden, size, strip, tokens, out, d);
    case 1: return add_outer<1>(hidden, size, strip, tokens, out, d);
  }
}

// Columns low..high-1 of an expert's sum of hidden^T x over its tokens, added to `out` (F, D).
void outer_of_expert(
    const float* const* x, const float* hidden, int64_t tokens, int64_t size, int64_t d,
    int64_t low, int64_t high, float* out) {
  constexpr int64_t WIDE = 2 * W;
  const int64_t strips = (high - low + WIDE - 1) / WIDE;
  float* packed = room<STRIP>(strips * PIECE * WIDE);
  for (int64_t p = 0; p < tokens; p += PIECE) {
    const int64_t count = std::min(PIECE, tokens - p);
    for (int64_t t = 0; t < count; ++t)
      for (int64_t s = 0; s < strips; ++s) {
        const int64_t c = low + s * WIDE, real = std::min(WIDE, high - c);
        float* to = packed + (s * PIECE + t) * WIDE;
        if (real == WIDE) {  // the compiler knows the size
          std::memcpy(to, x[p + t] + c, WIDE * sizeof(float));
        } else {
          std::copy_n(x[p + t] + c, real, to);
          std::fill(to + real, to + WIDE, 0.0f);
        }
      }
    for (int64_t s = 0; s < strips; ++s) {
      const float* strip = packed + s * PIECE * WIDE;
      const int64_t c = low + s * WIDE, real = std::min(WIDE, high - c);
      for (int64_t f = 0; f < size; f += 6) {
        const int64_t rows = std::min<int64_t>(6, size - f);
        const float* own = hidden + p * size + f;
        float* to = out + f * d + c;
        if (real == WIDE) {
          add_outer_rows(rows, own, size, strip, count, to, d);
          continue;
        }
        alignas(64) float tile[6 * WIDE] = {};
        for (int64_t m = 0; m < rows; ++m) std::copy_n(to + m * d, real, tile + m * WIDE);
        add_outer_rows(rows, own, size, strip, count, tile, WIDE);
        for (int64_t m = 0; m < rows; ++m) std::copy_n(tile + m * WIDE, real, to + m * d);
      }
    }
  }
}

const float* data(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<float>() : nullptr;
}

void check(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(
      tensor.scalar_type() == at::kFloat && tensor.is_contiguous() && tensor.device().is_cpu(),
      name, " must be contiguous float32 on the CPU");
}

void check(const std::optional<at::Tensor>& tensor, const char* name) {
  if (tensor.has_value()) check(*tensor, name);
}

// The weights of a layer as an operator takes them; what may be missing is optional.
struct Weights {
  const at::Tensor& keys;
  const at::Tensor& values;
  const std::optional<at::Tensor>& key_bias;
  const std::optional<at::Tensor>& ups;
  const std::optional<at::Tensor>& up_bias;
  const std::optional<at::Tensor>& output_bias;  // (D,), added once
  int64_t activation;

  Experts checked() const {
    check(keys, "keys");
    check(values, "values");
    check(key_bias, "key_bias");
    check(ups, "ups");
    check(up_bias, "up_bias");
    check(output_bias, "output_bias");
    return {keys.const_data_ptr<float>(), values.const_data_ptr<float>(), data(key_bias), data(ups),
            data(up_bias), keys.size(0), keys.size(1), keys.size(2), activation};
  }
};

// Weighted sum of the selected experts, float (T, D).
at::Tensor compute(
    const at::Tensor& x, const at::Tensor& index, const float* weights, const Weights& given) {
  check(x, "x");
  TORCH_CHECK(index.scalar_type() == at::kLong && index.is_contiguous(), "index must be int64");
  const Experts experts = given.checked();
  const int64_t tokens = x.size(0), d = experts.d_model, top_k = index.size(1);
  TORCH_CHECK(x.size(1) == d && index.size(0) == tokens, "x and index do not fit the experts");
  at::Tensor result = given.output_bias.has_value()
                          ? given.output_bias->expand({tokens, d}).clone(at::MemoryFormat::Contiguous)
                          : at::zeros({tokens, d}, x.options());
  const int64_t* chosen = index.const_data_ptr<int64_t>();
  for (int64_t start = 0; start < tokens; start += BLOCK) {
    const int64_t count = std::min(BLOCK, tokens - start);
    const Plan plan(chosen + start * top_k, count, top_k, experts.count);
    const float* own = weights == nullptr ? nullptr : weights + start * top_k;
    const Job job{experts, x.const_data_ptr<float>() + start * d, own, plan};
    float* out = result.mutable_data_ptr<float>() + start * d;
    if (tokens <= FEW)
      few_tokens(job, out);
    else
      many_tokens(job, out);
  }
  return result;
}

// The operator `experts`: the selection is given.
at::Tensor compute_experts(
    const at::Tensor& x, const at::Tensor& index, const std::optional<at::Tensor>& weights,
    const at::Tensor& keys, const at::Tensor& values, const std::optional<at::Tensor>& key_bias,
    const std::optional<at::Tensor>& ups, const std::optional<at::Tensor>& up_bias,
    const std::optional<at::Tensor>& output_bias, int64_t activation) {
  check(weights, "weights");
  return compute(x, index, data(weights),
                 {keys, values, key_bias, ups, up_bias, output_bias, activation});
}

// The choices of each expert, for the operators of training.
Plan plan_of(const at::Tensor& index, int64_t experts) {
  TORCH_CHECK(index.scalar_type() == at::kLong && index.is_contiguous(), "index must be int64");
  return Plan(index.const_data_ptr<int64_t>(), index.size(0), index.size(1), experts);
}

// The operator `order`: the choices, (S,), sorted by expert.
at::Tensor order(const at::Tensor& index, int64_t experts) {
  const Plan plan = plan_of(index, experts);
  at::Tensor result = at::empty({index.numel()}, index.options());
  std::copy(plan.choice.begin(), plan.choice.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

// The operator `project`: rows of the chosen experts times the token, (S, F) by sorted place.
at::Tensor project_choices(
    const at::Tensor& x, const at::Tensor& index, const at::Tensor& rows,
    const std::optional<at::Tensor>& bias) {
  check(x, "x");
  check(rows, "rows");
  check(bias, "bias");
  const Experts experts{rows.const_data_ptr<float>(), nullptr, data(bias), nullptr, nullptr,
                        rows.size(0), rows.size(1), rows.size(2), NONE};
  TORCH_CHECK(x.size(1) == experts.d_model && index.size(0) == x.size(0), "x does not fit");
  const Plan plan = plan_of(index, experts.count);
  at::Tensor result = at::empty({index.numel(), experts.size}, x.options());
  hide_all(Job{experts, x.const_data_ptr<float>(), nullptr, plan},
           result.mutable_data_ptr<float>());
  return result;
}

// The operator `combine`: the sum over a token's choices of hidden times the expert's rows, (T, D).
at::Tensor combine_choices(
    const at::Tensor& hidden, const at::Tensor& index, const at::Tensor& rows) {
  check(hidden, "hidden");
  check(rows, "rows");
  const int64_t experts = rows.size(0), size = rows.size(1), d = rows.size(2);
  TORCH_CHECK(hidden.size(0) == index.numel() && hidden.size(1) == size, "hidden does not fit");
  at::Tensor result = at::zeros({index.size(0), d}, hidden.options());
  combine_all(plan_of(index, experts), hidden.const_data_ptr<float>(),
              rows.const_data_ptr<float>(), experts, size, d, result.mutable_data_ptr<float>());
  return result;
}

// The operator `outer`: of each expert the sum over its choices of hidden^T x, (E, F, D), and of
// hidden alone, (E, F).
std::tuple<at::Tensor, at::Tensor> outer_of_choices(
    const at::Tensor& hidden, const at::Tensor& index, const at::Tensor& x, int64_t experts) {
  check(hidden, "hidden");
  check(x, "x");
  const int64_t size = hidden.size(1), d = x.size(1);
  TORCH_CHECK(hidden.size(0) == index.numel() && index.size(0) == x.size(0), "x does not fit");
  const Plan plan = plan_of(index, experts);
  const std::vector<const float*> rows = plan.rows(x.const_data_ptr<float>(), d);
  at::Tensor result = at::zeros({experts, size, d}, x.options());
  at::Tensor sums = at::zeros({experts, size}, x.options());
  const float* own = hidden.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>();
  float* totals = sums.mutable_data_ptr<float>();
  share_columns(experts, d, OUTER_COLUMNS, [&](int64_t e, int64_t low, int64_t high) {
    const int64_t start = plan.first[e], count = plan.first[e + 1] - start;
    outer_of_expert(rows.data() + start, own + start * size, count, size, d, low, high,
                    out + e * size * d);
    if (low > 0) return;
    for (int64_t p = start; p < start + count; ++p)
      for (int64_t f = 0; f < size; ++f) totals[e * size + f] += own[p * size + f];
  });
  return {result, sums};
}

// Choose `count` experts of one token by their scores, the most fitting first; among equals the
// lower number. Scores become whole numbers of the same order; the last one that is chosen is found
// bit by bit, which has no branch to guess.
void select_of_one(
    const float* scores, int64_t experts, int64_t count, bool largest, int32_t* order,
    int32_t* number, int64_t* chosen) {
  for (int64_t e = 0; e < experts; ++e) {
    int32_t bits;
    std::memcpy(&bits, scores + e, sizeof bits);
    bits ^= (bits >> 31) & 0x7fffffff;
    order[e] = largest ? bits : ~bits;
  }
  uint32_t least = 0;  // of the chosen, as an unsigned number
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    const int32_t candidate = static_cast<int32_t>((least | bit) ^ 0x80000000u);
    int32_t reach = 0;
    for (int64_t e = 0; e < experts; ++e) reach += order[e] >= candidate;
    if (reach >= count) least |= bit;
  }
  const int32_t threshold = static_cast<int32_t>(least ^ 0x80000000u);
  int64_t above = 0;
  for (int64_t e = 0; e < experts; ++e) above += order[e] > threshold;
  int64_t equal = count - above, n = 0;
  for (int64_t e = 0; e < experts && n < count; ++e)
    if (order[e] > threshold || (order[e] == threshold && equal-- > 0)) {
      number[n] = e;
      order[n++] = order[e];  // n is at most e
    }
  for (int64_t i = 0; i < count; ++i) {  // how many go before it: a sort has branches to guess
    int32_t rank = 0;
    for (int64_t j = 0; j < i; ++j) rank += order[j] >= order[i];
    for (int64_t j = i + 1; j < count; ++j) rank += order[j] > order[i];
    chosen[rank] = number[i];
  }
}

// Weights of the chosen experts of one token.
void weigh(
    const float* scores, int64_t experts, const int64_t* index, int64_t count, int64_t weighting,
    float scale, float* weights) {
  float most = -INFINITY, total = 0;
  for (int64_t e = 0; e < experts; ++e) most = std::max(most, scores[e]);
  if (weighting == PROBABILITY)
    for (int64_t e = 0; e < experts; ++e) total += std::exp(scores[e] - most);
  else  // relative to the chosen only, which may be the worst
    most = scores[*std::max_element(
        index, index + count, [&](int64_t a, int64_t b) { return scores[a] < scores[b]; })];
  for (int64_t j = 0; j < count; ++j) weights[j] = std::exp(scores[index[j]] - most);
  if (weighting == SOFTMAX)
    for (int64_t j = 0; j < count; ++j) total += weights[j];
  for (int64_t j = 0; j < count; ++j) weights[j] *= scale / total;
}

// The operator `layer`: scores (T, E), or gate vectors (E, D) to score by, then selection, weights
// and experts. Gives the output, the selection (T, K) and its weights (T, K), empty for ONES.
std::tuple<at::Tensor, at::Tensor, at::Tensor> compute_layer(
    const at::Tensor& x, const at::Tensor& router, bool scored, int64_t top_k, int64_t select,
    int64_t weighting, double scale, const at::Tensor& keys, const at::Tensor& values,
    const std::optional<at::Tensor>& key_bias, const std::optional<at::Tensor>& ups,
    const std::optional<at::Tensor>& up_bias, const std::optional<at::Tensor>& output_bias,
    int64_t activation) {
  check(x, "x");
  check(router, "scores or gate vectors");
  const int64_t tokens = x.size(0), d = x.size(1), experts = keys.size(0);
  const int64_t count = select == NOT_TOP ? experts - top_k : top_k;
  TORCH_CHECK(0 < count && count <= experts, "top_k does not fit the experts");
  at::Tensor scores = router;
  if (!scored && tokens == 1) {
    scores = at::empty({1, experts}, x.options());
    dots_of_one(x.const_data_ptr<float>(), router.const_data_ptr<float>(), d, experts,
                scores.mutable_data_ptr<float>());
  } else if (!scored) {
    scores = at::mm(x, router.t());
  }
  at::Tensor index = at::empty({tokens, count}, x.options().dtype(at::kLong));
  at::Tensor weights = at::empty({weighting == ONES ? 0 : tokens, count}, x.options());
  const float* rows = scores.const_data_ptr<float>();
  int64_t* chosen = index.mutable_data_ptr<int64_t>();
  float* weight = weighting == ONES ? nullptr : weights.mutable_data_ptr<float>();
  at::parallel_for(0, tokens, 64, [&](int64_t low, int64_t high) {
    std::vector<int32_t> order(experts), number(experts);
    for (int64_t t = low; t < high; ++t) {
      const float* row = rows + t * experts;
      select_of_one(row, experts, count, select == TOP, order.data(), number.data(),
                    chosen + t * count);
      if (weight != nullptr)
        weigh(row, experts, chosen + t * count, count, weighting, static_cast<float>(scale),
              weight + t * count);
    }
  });
  const Weights given{keys, values, key_bias, ups, up_bias, output_bias, activation};
  return {compute(x, index, weight, given), index, weights};
}

}  // namespace

TORCH_LIBRARY(moe_runner, library) {
  library.def(
      "experts(Tensor x, Tensor index, Tensor? weights, Tensor keys, Tensor values, "
      "Tensor? key_bias, Tensor? ups, Tensor? up_bias, Tensor? output_bias, int activation) "
      "-> Tensor");
  library.def(
      "layer(Tensor x, Tensor router, bool scored, int top_k, int select, int weighting, "
      "float scale, Tensor keys, Tensor values, Tensor? key_bias, Tensor? ups, Tensor? up_bias, "
      "Tensor? output_bias, int activation) -> (Tensor, Tensor, Tensor)");
  library.def("order(Tensor index, int experts) -> Tensor");
  library.def("project(Tensor x, Tensor index, Tensor rows, Tensor? bias) -> Tensor");
  library.def("combine(Tensor hidden, Tensor index, Tensor rows) -> Tensor");
  library.def(
      "outer(Tensor hidden, Tensor index, Tensor x, int experts) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(moe_runner, CPU, library) {
  library.impl("experts", compute_experts);
  library.impl("layer", compute_layer);
  library.impl("order", order);
  library.impl("project", project_choices);
  library.impl("combine", combine_choices);
  library.impl("outer", outer_of_choices);
}
