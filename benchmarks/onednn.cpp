// A C interface to oneDNN's vanilla_rnn, for peers/onednn.py. It compiles with oneDNN 2.x and 3.x
// and runs on any of its CPU runtimes.
//
// Sizes: T time steps, B batch rows, I inputs, H hidden units, L layers, D directions.
//
// The interface has plain layouts, and floats whatever type oneDNN computes in: x [T][B][I],
// w_layer [L][D][I][H], w_iter [L][D][H][H], bias [L][D][H] (the sum of the two biases of nn.RNN),
// y and dy [T][B][D*H], h_n [L][D][B][H].

#include <cstring>
#include <exception>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
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
void* rnn_new(int T, int B, int I, int H, int L, int D, int bf16, const float* x,
              const float* w_layer, const float* w_iter, const float* bias, const float* dy) {
  std::unique_ptr<Rnn> rnn;
  const int failed = guarded([&] {
    rnn = std::make_unique<Rnn>();
    const type data = bf16 ? type::bf16 : type::f32;
    const auto direction =
        D == 2 ? rnn_direction::bidirectional_concat : rnn_direction::unidirectional_left2right;
    const memory::dims x_dims{T, B, I}, y_dims{T, B, D * H}, h_dims{L, D, B, H};
    const memory::dims layer_dims{L, D, I, 1, H}, iter_dims{L, D, H, 1, H}, bias_dims{L, D, 1, H};
    // The tag `any` lets oneDNN choose the layout of the weights.
    const memory::desc x_desc(x_dims, data, tag::tnc), y_desc(y_dims, data, tag::tnc);
    const memory::desc layer_desc(layer_dims, data, tag::any), iter_desc(iter_dims, data, tag::any);
    const memory::desc bias_desc(bias_dims, type::f32, tag::ldgo);
    const memory::desc h_desc(h_dims, data, tag::ldnc), dh_desc(h_dims, type::f32, tag::ldnc);
    const auto use = dy ? prop_kind::forward_training : prop_kind::forward_inference;

#if DNNL_VERSION_MAJOR >= 3
    const vanilla_rnn_forward::primitive_desc forward(rnn->cpu, use, algorithm::eltwise_tanh,
                                                      direction, x_desc, h_desc, layer_desc,
                                                      iter_desc, bias_desc, y_desc, h_desc);
#else
    const vanilla_rnn_forward::primitive_desc forward({use, algorithm::eltwise_tanh, direction,
                                                       x_desc, h_desc, layer_desc, iter_desc,
                                                       bias_desc, y_desc, h_desc},
                                                      rnn->cpu);
#endif
    const memory layer = rnn->plain(layer_dims, tag::ldigo, w_layer);
    const memory iter = rnn->plain(iter_dims, tag::ldigo, w_iter);
    const memory input = rnn->convert(rnn->plain(x_dims, tag::tnc, x), x_desc);
    const memory biases = rnn->plain(bias_dims, tag::ldgo, bias);
    const memory output(y_desc, rnn->cpu), final_state(h_desc, rnn->cpu);
    // The initial state is given although it is zero. Without it the float32 dW_hh of oneDNN 2.6
    // and 3.2 is wrong: it multiplies dpre_t with h_t instead of h_{t-1}.
    const memory initial_state = rnn->zeros(h_desc);
    rnn->forward = vanilla_rnn_forward(forward);
    rnn->forward_args = {
        {DNNL_ARG_SRC_LAYER, input},
        {DNNL_ARG_SRC_ITER, initial_state},
        {DNNL_ARG_WEIGHTS_LAYER, rnn->convert(layer, forward.weights_layer_desc())},
        {DNNL_ARG_WEIGHTS_ITER, rnn->convert(iter, forward.weights_iter_desc())},
        {DNNL_ARG_BIAS, biases},
        {DNNL_ARG_DST_LAYER, output},
        {DNNL_ARG_DST_ITER, final_state}};
    if (!dy)
      return;

    const memory workspace(forward.workspace_desc(), rnn->cpu);
    rnn->forward_args[DNNL_ARG_WORKSPACE] = workspace;
    // Gradients are float32, also in bfloat16 training.
    const memory::desc dx_desc(x_dims, type::f32, tag::tnc), dy_desc(y_dims, type::f32, tag::tnc);
    const memory::desc dlayer_desc(layer_dims, type::f32, tag::any);
    const memory::desc diter_desc(iter_dims, type::f32, tag::any);
#if DNNL_VERSION_MAJOR >= 3
    const vanilla_rnn_backward::primitive_desc backward(
        rnn->cpu, prop_kind::backward, algorithm::eltwise_tanh, direction, x_desc, h_desc,
        layer_desc, iter_desc, bias_desc, y_desc, h_desc, dx_desc, dh_desc, dlayer_desc, diter_desc,
        bias_desc, dy_desc, dh_desc, forward);
#else
    const vanilla_rnn_backward::primitive_desc backward(
        {prop_kind::backward, algorithm::eltwise_tanh, direction, x_desc, h_desc, layer_desc,
         iter_desc, bias_desc, y_desc, h_desc, dx_desc, dh_desc, dlayer_desc, diter_desc, bias_desc,
         dy_desc, dh_desc},
        rnn->cpu, forward);
#endif
    rnn->backward = vanilla_rnn_backward(backward);
    rnn->backward_args = {
        {DNNL_ARG_SRC_LAYER, input},
        {DNNL_ARG_SRC_ITER, initial_state},
        {DNNL_ARG_WEIGHTS_LAYER, rnn->convert(layer, backward.weights_layer_desc())},
        {DNNL_ARG_WEIGHTS_ITER, rnn->convert(iter, backward.weights_iter_desc())},
        {DNNL_ARG_BIAS, biases},
        {DNNL_ARG_DST_LAYER, output},
        {DNNL_ARG_DST_ITER, final_state},
        {DNNL_ARG_WORKSPACE, workspace},
        {DNNL_ARG_DIFF_DST_LAYER, rnn->plain(y_dims, tag::tnc, dy)},
        {DNNL_ARG_DIFF_DST_ITER, rnn->zeros(dh_desc)},
        {DNNL_ARG_DIFF_SRC_LAYER, memory(dx_desc, rnn->cpu)},
        {DNNL_ARG_DIFF_SRC_ITER, memory(dh_desc, rnn->cpu)},
        {DNNL_ARG_DIFF_WEIGHTS_LAYER, rnn->zeros(backward.diff_weights_layer_desc())},
        {DNNL_ARG_DIFF_WEIGHTS_ITER, rnn->zeros(backward.diff_weights_iter_desc())},
        {DNNL_ARG_DIFF_BIAS, rnn->zeros(bias_desc)}};
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

// Copies a result to `out` in its plain layout. The results are y and h_n for inference, and dx,
// dw_layer, dw_iter and dbias for training. Returns 1 after an error.
int rnn_read(void* handle, const char* name, float* out) {
  return guarded([=] {
    Rnn& rnn = *static_cast<Rnn*>(handle);
    static const std::unordered_map<std::string, std::pair<int, tag>> results{
        {"y", {DNNL_ARG_DST_LAYER, tag::tnc}},
        {"h_n", {DNNL_ARG_DST_ITER, tag::ldnc}},
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
