package config

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Interrupted says that a second signal came while the process was stopping.
type Interrupted struct{ Signal os.Signal }

func (e *Interrupted) Error() string {
	return "stopped at once by a second signal (" + e.Signal.String() + "); work in progress was dropped"
}

// ExitCode is what a shell reports of a process killed by that signal: 128 and
// the signal's number.
func (e *Interrupted) ExitCode() int {
	if s, ok := e.Signal.(syscall.Signal); ok {
		return 128 + int(s)
	}
	return 1
}

// sameOrder is how close together two SIGTERM are one order to stop.
const sameOrder = time.Second

// RunUntilSignal calls run and returns its error. The first SIGTERM or SIGINT
// cancels run's context, with a cause that names the signal; run then finishes
// what it is doing and returns. A context.Canceled that it returns then is not
// an error. A second signal makes RunUntilSignal return *Interrupted at once,
// though run goes on until the caller, which is main, exits with its ExitCode. A SIGTERM
// within one second of the first signal is no second one: supervisors send it to a
// process and to its group, or twice.
func RunUntilSignal(ctx context.Context, run func(context.Context) error) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	return runUntil(ctx, signals, run)
}

func runUntil(ctx context.Context, signals <-chan os.Signal, run func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	var stopping time.Time // zero: it is not
	for {
		select {
		case err := <-done:
			if !stopping.IsZero() && errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		case s := <-signals:
			switch {
			case stopping.IsZero():
			case s == syscall.SIGTERM && time.Since(stopping) < sameOrder:
				continue
			default:
				return &Interrupted{Signal: s}
			}
			stopping = time.Now()
			cancel(errors.New("received signal: " + s.String()))
		}
	}
}
