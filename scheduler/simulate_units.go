package main

import (
	"math"
	"strconv"
	"strings"

	"github.com/damselfly-p2p/damselfly/pkg/config"
)

// rate is what a link carries, in bytes per second. It is written as networks are
// sold (10gbit, 100mbit, 2.5Gbps) or in bytes (125MB, 1GiB/s), see config.Rate.
type rate float64

type rateUnit struct {
	name string
	bits float64
}

// rateUnits are the units in bits; larger ones stand first.
func rateUnits() []rateUnit {
	return []rateUnit{{"tbit", 1e12}, {"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}
}

// parseRate reads a rate as config.ParseRate does.
func parseRate(text string) (rate, error) {
	r, err := config.ParseRate(text)
	return rate(r), err
}

// UnmarshalText is parseRate.
func (r *rate) UnmarshalText(text []byte) error {
	parsed, err := parseRate(string(text))
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}

// MarshalText writes the rate so that parseRate reads it back.
func (r rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r rate) String() string {
	bits := float64(r) * 8
	for _, u := range rateUnits() {
		if bits >= u.bits {
			return strconv.FormatFloat(bits/u.bits, 'g', 6, 64) + u.name
		}
	}
	return "0"
}

// human is the rate for people: 10 Gbit/s.
func (r rate) human() string {
	bits := float64(r) * 8
	for _, u := range []rateUnit{{"Tbit/s", 1e12}, {"Gbit/s", 1e9}, {"Mbit/s", 1e6}, {"kbit/s", 1e3}} {
		if bits >= u.bits {
			return figure(bits/u.bits) + " " + u.name
		}
	}
	return figure(bits) + " bit/s"
}

// humanBytes is a size for people, in powers of 1000 as networks count: 8 GB.
func humanBytes(n float64) string {
	for _, u := range []rateUnit{{"EB", 1e18}, {"PB", 1e15}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if n >= u.bits*0.9995 {
			return figure(n/u.bits) + " " + u.name
		}
	}
	return figure(n) + " B"
}

// humanSeconds is a span for people: 12 ms, 7.2 s, 21 min, 14 h, 3 days.
func humanSeconds(s float64) string {
	switch {
	case s < 0.0995:
		return figure(s*1000) + " ms"
	case s < 119.5:
		return figure(s) + " s"
	case s < 2*3600:
		return figure(s/60) + " min"
	case s < 3*86400:
		return figure(s/3600) + " h"
	}
	return figure(s/86400) + " days"
}

// figure has three digits or, above, no fraction and commas: 6.41, 64.1, 2,000.
func figure(v float64) string {
	switch {
	case v >= 99.95:
		return grouped(int64(math.Round(v)))
	case v >= 9.995:
		return trimZeros(strconv.FormatFloat(v, 'f', 1, 64))
	}
	return trimZeros(strconv.FormatFloat(v, 'f', 2, 64))
}

func trimZeros(s string) string {
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

// grouped has a comma between thousands.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
