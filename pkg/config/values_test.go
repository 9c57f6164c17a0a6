package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"go.uber.org/zap"
	"pgregory.net/rapid"
)

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]config.Bytes{
		"0": 0, "7": 7, "512B": 512, "10GiB": 10 << 30, "10 GiB": 10 << 30, " 10gib ": 10 << 30, "10Gi": 10 << 30,
		"500MB": 500e6, "500M": 500e6, "1k": 1000, "1kB": 1000, "1KiB": 1024, "1.5TiB": 3 << 39, "2PB": 2e15, "2PiB": 2 << 50,
		"0.3": 0, "1.0001kB": 1000, "9223372036854775807": math.MaxInt64,
	} {
		got, err := config.ParseBytes(text)
		if err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", " ", ".", "-1", "+1", "1e6", "0x10", "1/2", "1.2.3GiB", "GiB", "10 giraffes", "10Gib/s", "1,000",
		"9223372036854775808", "9000PiB", "∞", strings.Repeat("9", 1000)} {
		if got, err := config.ParseBytes(text); err == nil {
			t.Errorf("%q: got %d, want an error", text, got)
		} else if len(err.Error()) > 300 {
			t.Errorf("%q: the error is %d long", text, len(err.Error()))
		}
	}
}

func TestBytesString(t *testing.T) {
	for b, want := range map[config.Bytes]string{
		0: "0", 1: "1", 1000: "1kB", 1024: "1KiB", 1536: "1536", 10 << 30: "10GiB", 500e6: "500MB", 1 << 60: "1024PiB", 3e15: "3PB",
	} {
		if b.String() != want {
			t.Errorf("%d: got %s, want %s", int64(b), b, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<20).Draw(t, "n")
		b := config.Bytes(n << rapid.IntRange(0, 42).Draw(t, "shift"))
		if got, err := config.ParseBytes(b.String()); err != nil || got != b {
			t.Fatalf("%d is %s, read back as %d, %v", int64(b), b, int64(got), err)
		}
	})
}

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"1d": day, "1d12h": 36 * time.Hour, "0.5d": 12 * time.Hour, "30d": 30 * day, "-1d1h": -25 * time.Hour, "1d0s": day,
		"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "0": 0, "-3s": -3 * time.Second,
	} {
		if got, err := config.ParseDuration(text); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "1", "1 d", "1d12", "1h1d", "1d1d", "1d-1h", "1d+1h", "1e3d", "infd", "0x1d", "--1d", "200000d", "106751d24h", ".d"} {
		if got, err := config.ParseDuration(text); err == nil || !strings.Contains(err.Error(), "7d") {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
}

func TestRate(t *testing.T) {
	for text, want := range map[string]config.Rate{
		"10gbit": 1.25e9, "100mbit": 12.5e6, "800Mbit": 100e6, "125MB": 125e6, "100MB/s": 100e6, "1Gbps": 125e6,
		"2.5 Gbit/s": 312.5e6, "1GiB/s": 1 << 30, "125000000": 125e6, "0": 0, "8bit": 1, "9bit": 1,
	} {
		got, err := config.ParseRate(text)
		if err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"1MBps", "10gb", "10Gb/s", "fast", "-1gbit", "-1", "nangbit", "infbit", "", "1e400gbit", "1e30tbit",
		strings.Repeat("9", 1000) + "b"} {
		if got, err := config.ParseRate(text); err == nil {
			t.Errorf("%q: got %d, want an error", text, got)
		} else if len(err.Error()) > 400 {
			t.Errorf("%q: the error is %d long", text, len(err.Error()))
		}
	}
	for r, want := range map[config.Rate]string{
		0: "0", 1: "1", 100e6: "100MB", 12.5e6: "100mbit", 1.25e9: "10gbit", 1 << 30: "1GiB", 12345678: "12345678",
	} {
		if r.String() != want {
			t.Errorf("%d: got %s, want %s", int64(r), r, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		r := config.Rate(rapid.Int64Min(0).Draw(t, "n") >> rapid.IntRange(0, 62).Draw(t, "shift"))
		if got, err := config.ParseRate(r.String()); err != nil || got != r {
			t.Fatalf("%d is %s, read back as %d, %v", int64(r), r, int64(got), err)
		}
	})
}

func FuzzParseBytes(f *testing.F) {
	for _, seed := range []string{"10GiB", "1.5kB", "", "-1", "9999999999999PiB", "\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := config.ParseBytes(text)
		if err != nil {
			return
		}
		if b < 0 {
			t.Fatalf("%q is negative: %d", text, b)
		}
		if again, err := config.ParseBytes(b.String()); err != nil || again != b {
			t.Fatalf("%q is %d, printed as %s, read back as %d, %v", text, b, b, again, err)
		}
	})
}

const secret = "hunter2"

func TestRedactedHidesItsText(t *testing.T) {
	r := config.Redacted(secret)
	type holder struct{ Token config.Redacted }
	var out bytes.Buffer
	log, err := config.NewLogger(config.DefaultLog(), &out)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("m", zap.Any("a", r), zap.Stringer("b", r), zap.Reflect("c", r), zap.Any("d", holder{r}), zap.Any("e", []config.Redacted{r}),
		zap.Error(fmt.Errorf("with %v", r)))
	j, err := json.Marshal(map[string]any{"x": r, "y": holder{r}})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10s"} {
		fmt.Fprintf(&out, verb+verb+verb, r, holder{r}, &holder{r})
	}
	fmt.Fprint(&out, r, errors.New("e: "+r.String()))
	for _, leak := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret)} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("the secret shows: %s", out.String())
		}
	}
	if r.Reveal() != secret {
		t.Errorf("Reveal gives %q", r.Reveal())
	}
	if got := fmt.Sprint(config.Redacted("")); got != "" {
		t.Errorf("no secret prints as %q", got)
	}
}

func TestLogFormats(t *testing.T) {
	var out bytes.Buffer
	log, err := config.NewLogger(config.Log{Level: "warn", Format: "json"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("not this")
	log.Warn("disk is nearly full", zap.Duration("wait", time.Second))
	var line struct{ Level, Time, Msg, Wait, Caller string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if line.Level != "warn" || line.Msg != "disk is nearly full" || line.Wait != "1s" || !strings.HasPrefix(line.Caller, "config/values_test.go:") {
		t.Errorf("got %+v", line)
	}
	if _, err := time.Parse(time.RFC3339Nano, line.Time); err != nil {
		t.Errorf("time: %v", err)
	}
	out.Reset()
	log, err = config.NewLogger(config.Log{Level: "debug", Format: "console"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("hello", zap.Int("n", 1))
	if got := out.String(); !strings.Contains(got, "  DEBUG  ") || !strings.Contains(got, `hello  {"n": 1}`) {
		t.Errorf("got %q", got)
	}
}

func TestLogRefusesUnknown(t *testing.T) {
	for _, test := range []struct {
		c    config.Log
		want string
	}{
		{config.Log{Level: "loud", Format: "json"}, `level "loud" is unknown: use debug, info, warn or error`},
		{config.Log{Format: "json"}, `level "" is unknown`},
		{config.Log{Level: "info", Format: "xml"}, `format "xml" is unknown: use json or console`},
	} {
		if _, err := config.NewLogger(test.c, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: got %v", test.c, err)
		}
	}
}
