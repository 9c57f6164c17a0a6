package config

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestFirstSignalDrains(t *testing.T) {
	signals := make(chan os.Signal, 1)
	drained := false
	err := runUntil(t.Context(), signals, func(ctx context.Context) error {
		signals <- syscall.SIGTERM
		<-ctx.Done()
		if got := context.Cause(ctx).Error(); got != "received signal: terminated" {
			t.Errorf("cause is %q", got)
		}
		drained = true
		return ctx.Err()
	})
	if err != nil || !drained {
		t.Errorf("drained %v, error %v", drained, err)
	}
}

func TestErrorWhileDraining(t *testing.T) {
	signals := make(chan os.Signal, 1)
	failed := errors.New("disk full")
	err := runUntil(t.Context(), signals, func(ctx context.Context) error {
		signals <- os.Interrupt
		<-ctx.Done()
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	signals := make(chan os.Signal, 1)
	release, gone := make(chan struct{}), make(chan struct{})
	err := runUntil(t.Context(), signals, func(ctx context.Context) error {
		defer close(gone)
		signals <- syscall.SIGTERM
		<-ctx.Done()
		signals <- syscall.SIGINT
		<-release
		return nil
	})
	close(release)
	<-gone
	var interrupted *Interrupted
	if !errors.As(err, &interrupted) || interrupted.ExitCode() != 130 {
		t.Errorf("got %v", err)
	}
}

// Two SIGTERM in a moment are one order: what runs is finished. One that comes later is
// meant, and a SIGINT, which somebody types, at any time.
func TestSecondSIGTERMInAMomentDropsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, late := range []struct {
			after   time.Duration
			signal  os.Signal
			dropped bool
		}{
			{3 * time.Millisecond, syscall.SIGTERM, false},
			{3 * time.Millisecond, syscall.SIGINT, true},
			{1500 * time.Millisecond, syscall.SIGTERM, true},
		} {
			signals := make(chan os.Signal, 1)
			finished, release := false, make(chan struct{})
			err := runUntil(t.Context(), signals, func(ctx context.Context) error {
				signals <- syscall.SIGTERM
				<-ctx.Done()
				<-time.After(late.after)
				signals <- late.signal
				select {
				case <-time.After(time.Minute):
					finished = true
				case <-release:
				}
				return nil
			})
			close(release)
			if dropped := err != nil; dropped != late.dropped || !dropped && !finished {
				t.Errorf("%v %v after the first: %v, finished %v", late.signal, late.after, err, finished)
			}
			synctest.Wait()
		}
	})
}

func TestRunEndsByItself(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, want := range []error{nil, errors.New("x"), context.Canceled} {
		if err := RunUntilSignal(ctx, func(context.Context) error { return want }); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

// A real signal reaches the context.
func TestSignalFromOutside(t *testing.T) {
	err := RunUntilSignal(t.Context(), func(ctx context.Context) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		t.Error(err)
	}
}

func TestBuildFromToolchain(t *testing.T) {
	info := &debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "v0.2.0"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "3f2a91c0d1e2aaaabbbb"}, {Key: "vcs.modified", Value: "true"}}}
	if got := buildOf(info).String(); got != "v0.2.0 (3f2a91c0d1e2+dirty, go1.26.8)" {
		t.Errorf("got %s", got)
	}
	info.Main.Version, info.Settings = "(devel)", nil
	if got := buildOf(info).String(); got != "devel (go1.26.8)" {
		t.Errorf("got %s", got)
	}
	if ReadBuild().GoVersion == "" {
		t.Error("no Go version in a running program")
	}
}
