package main

import (
	"strings"
	"testing"
)

func TestRates(t *testing.T) {
	for text, want := range map[string]rate{
		"10gbit": 1.25e9, "100mbit": 12.5e6, "125MB": 125e6, "1Gbps": 125e6, "2.5 Gbit/s": 312.5e6, "1GiB/s": 1 << 30,
		"125000000": 125e6, "0": 0, "8bit": 1, "1MBps": -1, "10gb": -1, "10Gb/s": -1, "fast": -1, "-1gbit": -1, "nangbit": -1, "": -1, "1e400gbit": -1,
	} {
		got, err := parseRate(text)
		if want < 0 {
			if err == nil {
				t.Errorf("%q was read as %v", text, float64(got))
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", text, float64(got), err, float64(want))
		}
		if again, err := parseRate(got.String()); err != nil || again < got*0.99999 || again > got*1.00001 {
			t.Errorf("%q is written %q, which is %v, %v", text, got, float64(again), err)
		}
	}
	if _, err := parseRate("10gb"); err == nil || !strings.Contains(err.Error(), "10gbit or 10gB") {
		t.Errorf("10gb: %v", err)
	}
}

func TestHumanFigures(t *testing.T) {
	for got, want := range map[string]string{
		rate(1.25e9).human(): "10 Gbit/s", rate(12.5e6).human(): "100 Mbit/s", rate(1).human(): "8 bit/s",
		humanBytes(8e9): "8 GB", humanBytes(16e12): "16 TB", humanBytes(999.9e6): "1 GB", humanBytes(268435456): "268 MB", humanBytes(5): "5 B",
		humanSeconds(0.0123): "12.3 ms", humanSeconds(7.214): "7.21 s", humanSeconds(1280): "21.3 min", humanSeconds(50400): "14 h", humanSeconds(864000): "10 days",
		grouped(1234567): "1,234,567", grouped(-123): "-123", grouped(1000): "1,000", grouped(999): "999", figure(2000): "2,000", figure(0): "0",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
