package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Rate is bytes a second, never negative when it was parsed. It is written as networks
// are sold, in bits (800mbit, 2.5Gbps), or in bytes as Bytes is (100MB, 1GiB/s); without
// a unit it counts bytes.
type Rate int64

// bitUnits are the units in bits; larger ones stand first.
func bitUnits() []unit {
	return []unit{{"tbit", 1e12}, {"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}
}

// ParseRate reads a rate. A part of a byte is dropped, and a b that could be a bit or a
// byte is refused. The error quotes text and says how to write a rate.
func ParseRate(text string) (Rate, error) {
	name := strings.TrimSpace(text)
	name, perSecond := strings.CutSuffix(name, "/s")
	if number, ok := strings.CutSuffix(name, "bps"); ok && !perSecond {
		name = number + "bit"
	}
	low := strings.ToLower(name)
	for _, u := range bitUnits() {
		number, ok := strings.CutSuffix(low, u.name)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if v *= float64(u.size) / 8; err != nil || !(v >= 0 && v < math.MaxInt64) {
			break
		}
		return Rate(v), nil
	}
	if number, ok := strings.CutSuffix(name, "b"); ok {
		return 0, fmt.Errorf("%q may mean bits or bytes: write %sbit or %sB", clip(text), clip(number), clip(number))
	}
	size, err := ParseBytes(name)
	if err != nil {
		return 0, fmt.Errorf("%q is not a rate: write a number and a unit a second, such as 10gbit, 100mbit or 125MB", clip(text))
	}
	return Rate(size), nil
}

// String writes the rate exactly, in bits or bytes, whichever has the shorter number:
// 100MB, 100mbit. ParseRate reads it back.
func (r Rate) String() string {
	digits := func(s string) int {
		return len(strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
	}
	out := Bytes(r).String()
	if r > 1e15 {
		return out // floats hold no more bits exactly
	}
	for _, u := range bitUnits() {
		if bits := int64(r) * 8; r > 0 && bits%u.size == 0 {
			if s := strconv.FormatInt(bits/u.size, 10) + u.name; digits(s) < digits(out) {
				return s
			}
			break
		}
	}
	return out
}

// MarshalText is String.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParseRate.
func (r *Rate) UnmarshalText(text []byte) error {
	parsed, err := ParseRate(string(text))
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}
