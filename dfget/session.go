package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/damselfly-p2p/damselfly/dfget/progress"
)

// session is one get or pull under way: its time limit, its progress, what it
// tells people.
type session struct {
	p       *process
	o       *options
	what    string // what is being done, for messages
	start   time.Time
	tracker *progress.Tracker
	mode    progress.Mode

	mu   sync.Mutex
	held []string // warnings that wait until the bars are gone
}

// report is what a command says at the end, as text and as JSON.
type report interface {
	// line is for people: what, where, how much.
	line() string
	// finish sets the seconds that it took.
	finish(seconds float64)
}

// runSession calls work under the options' time limit, with progress drawn, and
// tells the user how it ended. The error has been told already.
func runSession(ctx context.Context, p *process, o *options, what string, work func(context.Context, *session) (report, error)) error {
	s := &session{p: p, o: o, what: what, start: time.Now()}
	s.mode = s.progressMode()
	s.tracker = progress.New(progress.Config{Mode: s.mode, Out: p.Err})
	limited := ctx
	if o.timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, o.timeout, errTimeout)
		defer cancel()
	}
	rep, err := s.draw(limited, work)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		// Libraries report the end of a context in words of their own.
		err = fmt.Errorf("%w (%s)", errTimeout, o.timeout)
	}
	if err != nil {
		return s.fail(ctx, err)
	}
	elapsed := time.Since(s.start)
	rep.finish(elapsed.Seconds())
	if o.output == outputJSON {
		if err := encodeJSON(p.Out, rep); err != nil {
			return s.fail(ctx, fmt.Errorf("write the JSON object: %w", err))
		}
		return nil
	}
	if !o.quiet {
		fmt.Fprintln(p.Err, rep.line())
	}
	return nil
}

// draw runs work beside its progress.
func (s *session) draw(ctx context.Context, work func(context.Context, *session) (report, error)) (report, error) {
	drawing, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.tracker.Run(drawing)
	}()
	rep, err := work(ctx, s)
	stop()
	<-done
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode = progress.None
	for _, w := range s.held {
		fmt.Fprintln(s.p.Err, w)
	}
	s.held = nil
	return rep, err
}

// warn tells the user something that is no failure. It is safe for concurrent
// use.
func (s *session) warn(msg string) {
	if s.o.quiet {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	msg = "dfget: warning: " + msg
	if s.mode == progress.Bars {
		s.held = append(s.held, msg)
		return
	}
	fmt.Fprintln(s.p.Err, msg)
}

// fail tells the user of err.
func (s *session) fail(ctx context.Context, err error) error {
	f := explain(ctx, err)
	if f.Code == exitInterrupted {
		f.Hint = "the same command goes on where it stopped"
		if done, size, _, _, _ := s.tracker.Totals(); done > 0 && size > 0 && s.o.path != stdoutPath {
			f.Hint = fmt.Sprintf("%s of %s are kept; %s", progress.Bytes(done), progress.Bytes(size), f.Hint)
		}
	}
	f.print(s.p, s.what)
	if s.o.output == outputJSON {
		out := struct {
			Ref   string  `json:"ref"`
			Error failure `json:"error"`
		}{s.what, f}
		// The exit code tells of err; that the output is gone changes nothing.
		_ = encodeJSON(s.p.Out, out)
	}
	return &toldError{f.Code}
}

// progressMode is how progress is shown.
func (s *session) progressMode() progress.Mode {
	if s.o.quiet || s.o.path == stdoutPath {
		return progress.None
	}
	switch s.o.progress {
	case "bar":
		return progress.Bars
	case "plain":
		return progress.Plain
	case "none":
		return progress.None
	}
	if hasRoom(s.p.Err) && s.p.Env("TERM") != "dumb" {
		return progress.Bars
	}
	return progress.Plain
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// hasRoom tells whether w is a terminal that bars can be drawn on. Those that
// scripts and kubectl exec open may have no size, and then show none.
func hasRoom(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return err == nil && width > 0 && height > 0
}

// debugLogger writes to standard error what the origin client does.
func debugLogger(p *process) *zap.Logger {
	cfg := zap.NewDevelopmentEncoderConfig()
	cfg.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	if p.Env("NO_COLOR") == "" && isTerminal(p.Err) {
		cfg.EncodeLevel = zapcore.CapitalColorLevelEncoder
	}
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(cfg), zapcore.Lock(zapcore.AddSync(p.Err)), zap.DebugLevel))
}

// summary is the text of a download's end.
func summary(bytes, fetched int64, seconds float64, source string) string {
	s := fmt.Sprintf("%s in %.1f s", progress.Bytes(bytes), seconds)
	elapsed := time.Duration(seconds * float64(time.Second))
	if rate := progress.Rate(fetched, elapsed); rate != "" && fetched > 0 {
		s += " (" + rate + ")"
	}
	if fetched < bytes {
		s += fmt.Sprintf(", %s were here already", progress.Bytes(bytes-fetched))
	}
	switch source {
	case "disk":
		return s
	case "daemon+origin":
		return s + ", from the daemon and the origin"
	}
	return s + ", from the " + source
}
