// A C interface to oneDNN's vanilla_rnn, lbr_gru and lstm, for peers/onednn.py. It compiles with
// oneDNN 2.x and 3.x and runs on any of its CPU runtimes.
//
// Sizes: T time steps, B batch rows, I inputs, H hidden units, L layers, D directions, G gates. The
// cells are "rnn" (tanh, G = 1), "gru" (G = 3) and "lstm" (G = 4).
//
// The interface has plain layouts, and floats whatever type oneDNN computes in: x [T][B][I],
// w_layer [L][D][I][G][H], w_iter [L][D][H][G][H], bias [L][D][G][H] (G + 1 for a GRU), y and dy
// [T][B][D*H], h_n and c_n [L][D][B][H].
//
// The gates of an LSTM have the order of nn.LSTM, and a bias is the sum of the two of nn.LSTM. The
// gates of a GRU are z, r, n, and its biases b_iz + b_hz, b_ir + b_hr, b_in, b_hn.

#include <cstring>
#include <exception>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>

using namespace dnnl;
using tag = memory::format_tag;
using type = memory::data_type;

namespace {

thread_local std::string last_error;

struct Rnn {
  engine cpu{engine::kind::cpu, 0};
  stream queue{cpu};
  primitive forward, backward;
  std::unordered_map<int, memory> forward_args, backward_args;

  memory plain(const memory::dims& dims, tag format, const float* data) {
    memory m({dims, type::f32, format}, cpu);
    float* to = m.map_data<float>();
    std::memcpy(to, data, m.get_desc().get_size());
    m.unmap_data(to);
    return m;
  }

  memory zeros(const memory::desc& desc) {
    memory m(desc, cpu);
    clear(m);
    return m;
  }

  static void clear(memory& m) {
    char* to = m.map_data<char>();
    std::memset(to, 0, m.get_desc().get_size());
    m.unmap_data(to);
  }

  memory convert(memory from, const memory::desc& desc) {
    if (from.get_desc() == desc)
      return from;
    memory to(desc, cpu);
    reorder(from, to).execute(queue, from, to);
    queue.wait();
    return to;
  }
};

memory::dims dims_of(const memory::desc& desc) {
#if DNNL_VERSION_MAJOR >= 3
  return desc.get_dims();
#else
  return desc.dims();
#endif
}

struct Sizes {
  int T, B, I, H, L, D, G;
  bool bf16;
};

struct Arrays {
  const float *x, *w_layer, *w_iter, *bias, *dy;
};

// Describes the primitive P with a tuple of arguments. A backward pass has the description of the
// forward pass as its hint.
template <class P, class Arguments, class... Hint>
auto describe(const engine& cpu, const Arguments& arguments, const Hint&... hint) {
  return std::apply(
      [&](const auto&... argument) {
#if DNNL_VERSION_MAJOR >= 3
        return typename P::primitive_desc(cpu, argument..., hint...);
#else
        return typename P::primitive_desc(typename P::desc(argument...), cpu, hint...);
#endif
      },
      arguments);
}

// Prepares the primitives and their arguments. The tuple `activation` holds what an RNN has before
// its direction. An RNN and a GRU have one state, h, and an LSTM has two, h and c.
template <class Forward, class Backward, int states, class... Activation>
void prepare(Rnn& rnn, const Sizes& s, const Arrays& given,
             const std::tuple<Activation...>& activation) {
  const auto [T, B, I, H, L, D, G, bf16] = s;
  const bool training = given.dy;
  const type data = bf16 ? type::bf16 : type::f32;
  const auto direction =
      D == 2 ? rnn_direction::bidirectional_concat : rnn_direction::unidirectional_left2right;
  const int biases = std::is_same_v<Forward, lbr_gru_forward> ? G + 1 : G;
  const memory::dims x_dims{T, B, I}, y_dims{T, B, D * H}, h_dims{L, D, B, H};
  const memory::dims layer_dims{L, D, I, G, H}, iter_dims{L, D, H, G, H};
  const memory::dims bias_dims{L, D, biases, H};
  // The tag `any` lets oneDNN choose the layout of the weights.
  const memory::desc x_desc(x_dims, data, tag::tnc), y_desc(y_dims, data, tag::tnc);
  const memory::desc layer_desc(layer_dims, data, tag::any), iter_desc(iter_dims, data, tag::any);
  const memory::desc bias_desc(bias_dims, type::f32, tag::ldgo);
  // The state c and all gradients are float32, also in bfloat16 training.
  const memory::desc h_desc(h_dims, data, tag::ldnc), float_desc(h_dims, type::f32, tag::ldnc);
  const auto with_states = [&](const memory::desc& first) {
    if constexpr (states == 2)
      return std::tuple(first, float_desc);
    else
      return std::tuple(first);
  };
  const auto inputs =
      std::tuple_cat(std::tuple_cat(std::tuple(x_desc), with_states(h_desc)),
                     std::tuple(layer_desc, iter_desc, bias_desc, y_desc), with_states(h_desc));
  const auto call = [&](prop_kind kind) {
    return std::tuple_cat(std::tuple(kind), activation, std::tuple(direction), inputs);
  };

  const auto forward = describe<Forward>(
      rnn.cpu, call(training ? prop_kind::forward_training : prop_kind::forward_inference));
  const memory layer = rnn.plain(layer_dims, tag::ldigo, given.w_layer);
  const memory iter = rnn.plain(iter_dims, tag::ldigo, given.w_iter);
  // The initial states are given although they are zero. Without them the float32 dW_hh of oneDNN
  // 2.6 and 3.2 is wrong: it multiplies dpre_t with h_t instead of h_{t-1}.
  std::unordered_map<int, memory> shared{
      {DNNL_ARG_SRC_LAYER, rnn.convert(rnn.plain(x_dims, tag::tnc, given.x), x_desc)},
      {DNNL_ARG_SRC_ITER, rnn.zeros(h_desc)},
      {DNNL_ARG_BIAS, rnn.plain(bias_dims, tag::ldgo, given.bias)},
      {DNNL_ARG_DST_LAYER, memory(y_desc, rnn.cpu)},
      {DNNL_ARG_DST_ITER, memory(h_desc, rnn.cpu)}};
  if (states == 2) {
    shared[DNNL_ARG_SRC_ITER_C] = rnn.zeros(float_desc);
    shared[DNNL_ARG_DST_ITER_C] = memory(float_desc, rnn.cpu);
  }
  if (training)
    shared[DNNL_ARG_WORKSPACE] = memory(forward.workspace_desc(), rnn.cpu);
  rnn.forward = Forward(forward);
  rnn.forward_args = shared;
  rnn.forward_args[DNNL_ARG_WEIGHTS_LAYER] = rnn.convert(layer, forward.weights_layer_desc());
  rnn.forward_args[DNNL_ARG_WEIGHTS_ITER] = rnn.convert(iter, forward.weights_iter_desc());
  if (!training)
    return;

  const memory::desc dx_desc(x_dims, type::f32, tag::tnc), dy_desc(y_dims, type::f32, tag::tnc);
  const memory::desc dlayer_desc(layer_dims, type::f32, tag::any);
  const memory::desc diter_desc(iter_dims, type::f32, tag::any);
  const auto gradients = std::tuple_cat(std::tuple(dx_desc), with_states(float_desc),
                                        std::tuple(dlayer_desc, diter_desc, bias_desc, dy_desc),
                                        with_states(float_desc));
  const auto backward =
      describe<Backward>(rnn.cpu, std::tuple_cat(call(prop_kind::backward), gradients), forward);
  rnn.backward = Backward(backward);
  rnn.backward_args = shared;
  for (auto [arg, m] : std::initializer_list<std::pair<int, memory>>{
           {DNNL_ARG_WEIGHTS_LAYER, rnn.convert(layer, backward.weights_layer_desc())},
           {DNNL_ARG_WEIGHTS_ITER, rnn.convert(iter, backward.weights_iter_desc())},
           {DNNL_ARG_DIFF_DST_LAYER, rnn.plain(y_dims, tag::tnc, given.dy)},
           {DNNL_ARG_DIFF_DST_ITER, rnn.zeros(float_desc)},
           {DNNL_ARG_DIFF_SRC_LAYER, memory(dx_desc, rnn.cpu)},
           {DNNL_ARG_DIFF_SRC_ITER, memory(float_desc, rnn.cpu)},
           {DNNL_ARG_DIFF_WEIGHTS_LAYER, rnn.zeros(backward.diff_weights_layer_desc())},
           {DNNL_ARG_DIFF_WEIGHTS_ITER, rnn.zeros(backward.diff_weights_iter_desc())},
           {DNNL_ARG_DIFF_BIAS, rnn.zeros(bias_desc)}})
    rnn.backward_args[arg] = m;
  if (states == 2) {
    rnn.backward_args[DNNL_ARG_DIFF_DST_ITER_C] = rnn.zeros(float_desc);
    rnn.backward_args[DNNL_ARG_DIFF_SRC_ITER_C] = memory(float_desc, rnn.cpu);
  }
}

template <typename F> int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    last_error = e.what();
    return 1;
  }
}

} // namespace

extern "C" {

const char* rnn_error() { return last_error.c_str(); }

const char* rnn_version() {
  static const std::string text = std::to_string(version()->major) + "." +
                                  std::to_string(version()->minor) + "." +
                                  std::to_string(version()->patch);
  return text.c_str();
}

// Prepares a call and returns a handle, or null after an error, whose text rnn_error returns. dy is
// null for inference.
void* rnn_new(const char* cell, int T, int B, int I, int H, int L, int D, int bf16, const float* x,
              const float* w_layer, const float* w_iter, const float* bias, const float* dy) {
  std::unique_ptr<Rnn> rnn;
  const int failed = guarded([&] {
    rnn = std::make_unique<Rnn>();
    const std::string name = cell;
    const int gates = name == "rnn" ? 1 : name == "gru" ? 3 : 4;
    const Sizes sizes{T, B, I, H, L, D, gates, bf16 != 0};
    const Arrays given{x, w_layer, w_iter, bias, dy};
    if (name == "rnn")
      prepare<vanilla_rnn_forward, vanilla_rnn_backward, 1>(*rnn, sizes, given,
                                                            std::tuple(algorithm::eltwise_tanh));
    else if (name == "gru")
      prepare<lbr_gru_forward, lbr_gru_backward, 1>(*rnn, sizes, given, std::tuple());
    else
      prepare<lstm_forward, lstm_backward, 2>(*rnn, sizes, given, std::tuple());
  });
  return failed ? nullptr : rnn.release();
}

// Runs the call once. Returns 1 after an error.
int rnn_run(void* handle) {
  return guarded([=] {
    Rnn& rnn = *static_cast<Rnn*>(handle);
    rnn.forward.execute(rnn.queue, rnn.forward_args);
    if (rnn.backward) {
      // oneDNN adds to these gradients.
      for (int arg : {DNNL_ARG_DIFF_WEIGHTS_LAYER, DNNL_ARG_DIFF_WEIGHTS_ITER, DNNL_ARG_DIFF_BIAS})
        Rnn::clear(rnn.backward_args.at(arg));
      rnn.backward.execute(rnn.queue, rnn.backward_args);
    }
    rnn.queue.wait();
  });
}

// Copies a result to `out` in its plain layout. The results are y, h_n and c_n for inference, and
// dx, dw_layer, dw_iter and dbias for training. Returns 1 after an error.
int rnn_read(void* handle, const char* name, float* out) {
  return guarded([=] {
    Rnn& rnn = *static_cast<Rnn*>(handle);
    static const std::unordered_map<std::string, std::pair<int, tag>> results{
        {"y", {DNNL_ARG_DST_LAYER, tag::tnc}},
        {"h_n", {DNNL_ARG_DST_ITER, tag::ldnc}},
        {"c_n", {DNNL_ARG_DST_ITER_C, tag::ldnc}},
        {"dx", {DNNL_ARG_DIFF_SRC_LAYER, tag::tnc}},
        {"dw_layer", {DNNL_ARG_DIFF_WEIGHTS_LAYER, tag::ldigo}},
        {"dw_iter", {DNNL_ARG_DIFF_WEIGHTS_ITER, tag::ldigo}},
        {"dbias", {DNNL_ARG_DIFF_BIAS, tag::ldgo}}};
    const auto [arg, format] = results.at(name);
    const memory m = (rnn.backward ? rnn.backward_args : rnn.forward_args).at(arg);
    memory copy = rnn.convert(m, {dims_of(m.get_desc()), type::f32, format});
    const float* from = copy.map_data<float>();
    std::memcpy(out, from, copy.get_desc().get_size());
    copy.unmap_data(const_cast<float*>(from));
  });
}

void rnn_delete(void* handle) { delete static_cast<Rnn*>(handle); }
}
