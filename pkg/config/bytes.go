package config

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// Bytes is a size in bytes, never negative when it was parsed. It is written as
// a number and a unit, such as 10GiB, 500MB or 1.5TiB; without a unit it counts
// bytes. KiB, MiB, GiB, TiB and PiB (or Ki, Mi, ...) are powers of 1024; kB, MB,
// GB, TB and PB (or k, M, ...) are powers of 1000. Case does not matter.
type Bytes int64

// unit is a name and how many bytes it is. Larger ones stand first, so that the
// first that divides a size is the one to print it in.
type unit struct {
	name string
	size int64
}

func units() []unit {
	return []unit{
		{"PiB", 1 << 50}, {"PB", 1e15},
		{"TiB", 1 << 40}, {"TB", 1e12},
		{"GiB", 1 << 30}, {"GB", 1e9},
		{"MiB", 1 << 20}, {"MB", 1e6},
		{"KiB", 1 << 10}, {"kB", 1e3},
		{"B", 1},
	}
}

// ParseBytes reads a size. A part of a byte is dropped. The error quotes text
// and says how to write a size.
func ParseBytes(text string) (Bytes, error) {
	number := strings.TrimSpace(text)
	end := strings.IndexFunc(number, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	name := ""
	if end >= 0 {
		number, name = number[:end], strings.TrimSpace(number[end:])
	}
	factor, ok := factorOf(name)
	value, isNumber := new(big.Rat).SetString(number)
	if !ok || !isNumber || len(number) > 40 {
		return 0, fmt.Errorf("%q is not a size: write a number of bytes, or a number and a unit such as 10GiB or 500MB", clip(text))
	}
	value.Mul(value, new(big.Rat).SetInt64(factor))
	whole := new(big.Int).Quo(value.Num(), value.Denom())
	if !whole.IsInt64() {
		return 0, fmt.Errorf("size %q is too large: the largest is %v", clip(text), Bytes(math.MaxInt64))
	}
	return Bytes(whole.Int64()), nil
}

func factorOf(name string) (int64, bool) {
	if name == "" {
		return 1, true
	}
	for _, u := range units() {
		if strings.EqualFold(name, u.name) || strings.EqualFold(name, strings.TrimSuffix(u.name, "B")) {
			return u.size, true
		}
	}
	return 0, false
}

// String writes the size exactly, in the largest unit that divides it: 10GiB,
// 500MB, 1234567. ParseBytes reads it back.
func (b Bytes) String() string {
	for _, u := range units() {
		if b != 0 && u.size > 1 && int64(b)%u.size == 0 {
			return strconv.FormatInt(int64(b)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText is String.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText is ParseBytes.
func (b *Bytes) UnmarshalText(text []byte) error {
	parsed, err := ParseBytes(string(text))
	if err != nil {
		return err
	}
	*b = parsed
	return nil
}

func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
