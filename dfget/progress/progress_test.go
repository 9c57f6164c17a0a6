package progress_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/damselfly-p2p/damselfly/dfget/progress"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs the tracker; the func returned ends it and waits.
func start(t *testing.T, tr *progress.Tracker) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tr.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func TestPlainWritesALineEveryFewSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		tr := progress.New(progress.Config{Mode: progress.Plain, Out: &out})
		stop := start(t, tr)
		<-time.After(6 * time.Second)
		if out.Len() > 0 {
			t.Errorf("told of nothing: %q", &out)
		}
		a, b := tr.Item("a", 10<<20), tr.Item("b", -1)
		a.Kept(2 << 20)
		a.Add(3 << 20)
		<-time.After(5 * time.Second)
		b.Expect(10 << 20)
		a.Add(5 << 20)
		a.End()
		<-time.After(5 * time.Second)
		packing := tr.Local("packing", 20<<20)
		packing.Add(4 << 20)
		<-time.After(5 * time.Second)
		packing.End()
		<-time.After(5 * time.Second)
		stop()
		want := []string{
			"5.0 MiB, 0 of 2 blobs, 614.4 KiB/s",
			"10.0 MiB of 20.0 MiB (50 %), 1 of 2 blobs, 1.0 MiB/s, 10s left",
			"packing: 4.0 MiB of 20.0 MiB",
			"10.0 MiB of 20.0 MiB (50 %), 1 of 2 blobs, 0 B/s",
		}
		if got := strings.Split(strings.TrimSpace(out.String()), "\n"); strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if done, size, fetched, ended, items := tr.Totals(); done != 10<<20 || size != 20<<20 || fetched != 8<<20 || ended != 1 || items != 2 {
			t.Errorf("totals %d %d %d %d %d", done, size, fetched, ended, items)
		}
	})
}

func TestBarsNameEveryItem(t *testing.T) {
	var out bytes.Buffer
	tr := progress.New(progress.Config{Mode: progress.Bars, Out: &out})
	a, b := tr.Item("first", 100), tr.Item("second", 0)
	a.Add(100)
	a.End()
	b.End()
	start(t, tr)()
	for _, want := range []string{"first", "second", "100.0 b / 100.0 b", "done"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not shown in %q", want, &out)
		}
	}
}

// What an earlier run left came at no speed.
func TestBarsDoNotCountKeptBytesAsSpeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		tr := progress.New(progress.Config{Mode: progress.Bars, Out: &out})
		a := tr.Item("resumed", 10<<30)
		stop := start(t, tr)
		a.Kept(5 << 30)
		for range 10 {
			<-time.After(150 * time.Millisecond)
			a.Add(1 << 20)
		}
		stop()
		if s := out.String(); strings.Contains(s, "GiB/s") || !strings.Contains(s, "MiB/s") {
			t.Errorf("drew %q", s)
		}
	})
}

func TestNoneIsSilent(t *testing.T) {
	var out bytes.Buffer
	tr := progress.New(progress.Config{Out: &out})
	tr.Item("a", 5).Add(5)
	start(t, tr)()
	if out.Len() > 0 {
		t.Errorf("wrote %q", &out)
	}
}

func TestBytesAndRate(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 30: "3.0 GiB", 1<<63 - 1: "8.0 EiB"} {
		if got := progress.Bytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	if got := progress.Rate(10<<20, 2*time.Second); got != "5.0 MiB/s" {
		t.Error(got)
	}
	if got := progress.Rate(10, 0); got != "" {
		t.Error(got)
	}
}
