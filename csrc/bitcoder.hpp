// A small adaptive binary arithmetic coder for what is short: scale and class vectors, probability tables.
#pragma once

#include <bit>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace sprat::rans {

// P(bit = 1) in 1/65536, moved by 1/(n + 1.5) until n reaches the limit.
struct Bit {
    uint32_t p = 32768;
    uint32_t n = 0;
    // At least 1/128 a side: costs nothing that matters and bounds what a few bytes can claim to hold.
    uint32_t coded() const { return p < 512 ? 512 : p > 65024 ? 65024 : p; }
    void update(int bit) {
        const uint32_t d = 2 * n + 3;
        if (bit) p += (65535 - p) * 2 / d;
        else p -= p * 2 / d;
        if (n < 127) ++n;
    }
};

class BitEncoder {
  public:
    static constexpr bool encoding = true;
    int code(int bit, uint32_t p) {
        const uint32_t mid = low_ + static_cast<uint32_t>((static_cast<uint64_t>(high_ - low_) * p) >> 16);
        if (bit) high_ = mid;
        else low_ = mid + 1;
        while (((low_ ^ high_) >> 24) == 0) {
            out_.push_back(static_cast<uint8_t>(high_ >> 24));
            low_ <<= 8;
            high_ = (high_ << 8) | 255;
        }
        return bit;
    }
    std::vector<uint8_t> finish() {
        // The decoder reads zeros past the end, so the shortest value in [low, high] will do.
        if (low_ != 0) {
            for (int keep = 1; keep <= 4; ++keep) {
                const uint64_t unit = uint64_t{1} << (32 - 8 * keep);
                const uint64_t value = (low_ + unit - 1) / unit * unit;
                if (value <= high_) {
                    for (int i = 0; i < keep; ++i) out_.push_back(static_cast<uint8_t>(value >> (24 - 8 * i)));
                    break;
                }
            }
        }
        while (!out_.empty() && out_.back() == 0) out_.pop_back();
        return std::move(out_);
    }

  private:
    uint32_t low_ = 0, high_ = 0xffffffffu;
    std::vector<uint8_t> out_;
};

class BitDecoder {
  public:
    static constexpr bool encoding = false;
    BitDecoder(const uint8_t* data, size_t size) : data_(data), size_(size) {
        for (int i = 0; i < 4; ++i) value_ = (value_ << 8) | next();
    }
    int code(int, uint32_t p) {
        const uint32_t mid = low_ + static_cast<uint32_t>((static_cast<uint64_t>(high_ - low_) * p) >> 16);
        const int bit = value_ <= mid;
        if (bit) high_ = mid;
        else low_ = mid + 1;
        while (((low_ ^ high_) >> 24) == 0) {
            low_ <<= 8;
            high_ = (high_ << 8) | 255;
            value_ = (value_ << 8) | next();
        }
        return bit;
    }
    // True when every byte was needed: nothing may follow the coded values.
    bool exhausted() const { return at_ >= size_; }

  private:
    uint8_t next() { return at_ < size_ ? data_[at_++] : (++at_, uint8_t{0}); }
    const uint8_t* data_;
    size_t size_, at_ = 0;
    uint32_t low_ = 0, high_ = 0xffffffffu, value_ = 0;
};

// Signed integers: zero flag, sign, unary exponent, two modelled mantissa bits, the rest raw.
struct IntModel {
    Bit zero, sign[3], exponent[34], first[34], second[34][2];
    int last = 0;  // sign of the value before: 0, 1 (+), 2 (-)
};

template <class Coder>
int64_t code_int(Coder& coder, IntModel& m, int64_t value) {
    auto bit = [&](Bit& b, int v) {
        v = coder.code(v, b.coded());
        b.update(v);
        return v;
    };
    if (bit(m.zero, value == 0)) {
        m.last = 0;
        return 0;
    }
    const int negative = bit(m.sign[m.last], value < 0);
    m.last = 1 + negative;
    const uint64_t magnitude = static_cast<uint64_t>(value < 0 ? -value : value);
    const int want = Coder::encoding ? static_cast<int>(std::bit_width(magnitude)) - 1 : 0;
    int e = 0;
    while (bit(m.exponent[e], e < want)) {
        if (++e > 32) throw std::invalid_argument("an integer of more than 33 bits");
    }
    uint64_t out = 1;
    int top = 0;
    for (int i = e - 1; i >= 0; --i) {
        const int v = static_cast<int>((magnitude >> i) & 1);
        int got;
        if (i == e - 1) got = top = bit(m.first[e], v);
        else if (i == e - 2) got = bit(m.second[e][top], v);
        else got = coder.code(v, 32768);
        out = (out << 1) | static_cast<uint64_t>(got);
    }
    return negative ? -static_cast<int64_t>(out) : static_cast<int64_t>(out);
}

}  // namespace sprat::rans
