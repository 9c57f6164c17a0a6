package config

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

type followed struct {
	Name   string   `yaml:"name"`
	Key    Redacted `yaml:"key"`
	Limits struct {
		Up   Rate `yaml:"up"`
		Down Rate `yaml:"down"`
	} `yaml:"limits" live:"true"`
	Hosts []struct {
		Name string `yaml:"name"`
	} `yaml:"hosts"`
}

// following is a program that follows its file.
type following struct {
	t       *testing.T
	file    string
	hangup  chan os.Signal
	applied []followed
	logs    *observer.ObservedLogs
}

func (f *following) write(text string) {
	f.t.Helper()
	if err := os.WriteFile(f.file, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	// The bubble's clock is not that of the file system.
	if err := os.Chtimes(f.file, time.Now(), time.Now()); err != nil {
		f.t.Fatal(err)
	}
}

// pass lets d pass.
func (f *following) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// said is what was logged since the last call.
func (f *following) said() string {
	var b strings.Builder
	for _, e := range f.logs.TakeAll() {
		b.WriteString(e.Message)
		for k, v := range e.ContextMap() {
			b.WriteString(" " + k + "=" + strings.Trim(strings.ReplaceAll(strings.TrimSpace(stringOf(v)), "\n", " "), "[]"))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func stringOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		var out []string
		for _, e := range v {
			out = append(out, stringOf(e))
		}
		return strings.Join(out, " ")
	}
	return ""
}

// follow runs test beside a follower in a bubble.
func follow(t *testing.T, first string, env []string, test func(f *following)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		f := &following{t: t, file: filepath.Join(t.TempDir(), "c.yaml"), hangup: make(chan os.Signal, 1), logs: logs}
		f.write(first)
		o := Options{File: f.file, Env: env}
		var held followed
		if _, err := Load(&held, o); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		r := &follower[followed]{log: zap.New(core), held: held, defaults: func() followed { return followed{} }, options: o,
			apply: func(c followed) { f.applied = append(f.applied, c) }}
		go func() { done <- r.run(ctx, f.hangup) }()
		test(f)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
}

func TestFollowTheFile(t *testing.T) {
	follow(t, "limits: {up: 100MB}\n", nil, func(f *following) {
		f.pass(time.Minute)
		if said := f.said(); said != "" || len(f.applied) > 0 {
			f.t.Errorf("nothing has changed, and it said %q and applied %v", said, f.applied)
		}
		f.write("limits: {up: 8mbit}\nkey: hush\n")
		f.pass(2*lookEvery + time.Millisecond)
		if len(f.applied) != 1 || f.applied[0].Limits.Up != 1e6 {
			f.t.Fatalf("applied %v", f.applied)
		}
		said := f.said()
		for _, want := range []string{"limits.up", "value=1MB", "c.yaml:1", "settings=key", "next start"} {
			if !strings.Contains(said, want) {
				f.t.Errorf("%q lacks %q", said, want)
			}
		}
		if strings.Contains(said, "hush") {
			f.t.Errorf("%q tells the secret", said)
		}
		f.pass(time.Minute)
		if said := f.said(); said != "" || len(f.applied) != 1 {
			f.t.Errorf("then it said %q and applied %v", said, f.applied)
		}
	})
}

// A file is not read while it is being written.
func TestFollowWaitsForTheWriter(t *testing.T) {
	follow(t, "limits: {up: 100MB}\n", nil, func(f *following) {
		for range 20 {
			f.write("name: x\n") // the limit is still to come
			f.pass(lookEvery)
		}
		f.write("name: x\nlimits: {up: 100MB}\n")
		f.pass(time.Minute)
		if said := f.said(); len(f.applied) > 0 || !strings.Contains(said, "settings=name") {
			f.t.Errorf("it applied %v and said %q", f.applied, said)
		}
	})
}

func TestFollowSIGHUP(t *testing.T) {
	follow(t, "limits: {up: 1MB, down: 2MB}\nhosts: [{name: a}]\n", []string{"DAMSELFLY_LIMITS_UP=3MB"}, func(f *following) {
		f.write("limits: {up: 9MB}\nhosts: [{name: a}, {name: b}]\n")
		f.hangup <- syscall.SIGHUP
		synctest.Wait()
		// The variable wins over the file, before and after.
		if len(f.applied) != 1 || f.applied[0].Limits.Up != 3e6 || f.applied[0].Limits.Down != 0 {
			f.t.Fatalf("applied %v", f.applied)
		}
		if said := f.said(); !strings.Contains(said, "SIGHUP") || !strings.Contains(said, "limits.down") || strings.Contains(said, "limits.up") || !strings.Contains(said, "settings=hosts") {
			f.t.Errorf("it said %q", said)
		}
	})
}

// What is wrong changes nothing, is told once, and is mended by the next file.
func TestFollowKeepsWhatHeld(t *testing.T) {
	follow(t, "limits: {up: 1MB}\n", nil, func(f *following) {
		f.write("limits: {upp: 2MB}\n")
		f.pass(time.Minute)
		if said := f.said(); len(f.applied) > 0 || strings.Count(said, "cannot be loaded") != 1 || !strings.Contains(said, "c.yaml:1:10") {
			f.t.Errorf("it applied %v and said %q", f.applied, said)
		}
		if err := os.Remove(f.file); err != nil {
			f.t.Fatal(err)
		}
		f.pass(time.Minute)
		if said := f.said(); len(f.applied) > 0 || strings.Count(said, "cannot be loaded") != 1 {
			f.t.Errorf("without a file it applied %v and said %q", f.applied, said)
		}
		f.write("limits: {up: 2MB}\n")
		f.pass(time.Minute)
		if len(f.applied) != 1 || f.applied[0].Limits.Up != 2e6 {
			f.t.Errorf("then it applied %v", f.applied)
		}
	})
}

// A signal reaches a program that follows, and does not end it.
func TestFollowHearsTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("limits: {up: 5MB}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	core, logs := observer.New(zap.InfoLevel)
	applied, done := make(chan followed, 9), make(chan error, 1)
	// A first signal is not sent before Follow listens: it applies the file by itself.
	go func() {
		done <- Follow(ctx, zap.New(core), followed{}, func() followed { return followed{} }, Options{File: file}, func(c followed) { applied <- c })
	}()
	if c := <-applied; c.Limits.Up != 5e6 {
		t.Errorf("applied %v", c)
	}
	if err := os.WriteFile(file, []byte("limits: {up: 6MB}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if c := <-applied; c.Limits.Up != 6e6 {
		t.Errorf("applied %v", c)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if logs.FilterMessageSnippet("SIGHUP").Len() != 1 {
		t.Errorf("it said %v", logs.All())
	}
}
