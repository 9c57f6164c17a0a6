// Package process starts the programs that the end-to-end tests and the demo
// are made of, keeps their output, and ends them without leaving anything
// behind. It knows nothing about what it starts.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Spec says what to start.
type Spec struct {
	// Name is used in messages and names the log file.
	Name string
	// Path is the program's file, Args its arguments without the program's name.
	Path string
	Args []string
	// Dir is a directory for the process alone. It is the working directory and
	// HOME, and the log is written to Dir/Name.log. It is created.
	Dir string
	// Env is added to an environment that has PATH, HOME and TMPDIR only, so
	// that settings of the caller's shell, such as HTTP proxies, change nothing.
	Env []string
	// Mounts are shell commands run in a mount namespace of the process's own
	// before it starts. Not empty: the process gets its own mount and PID
	// namespaces, so that its mounts and children end with it. Needs root.
	Mounts []string
	// Netns is the file of a network namespace that the program runs in; empty: the
	// caller's. Needs root and util-linux.
	Netns string
}

// Process is a program that was started. Its methods may be called from
// several goroutines.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; read after done is closed
}

// Start starts a program. The caller ends it with Stop or Kill; it is killed
// when the calling program dies first.
func Start(s Spec) (*Process, error) {
	cmd, log, err := s.command(context.Background())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	p := &Process{name: s.Name, log: log.Name(), cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Run starts a program and waits for it. It returns what the program wrote to
// its standard output; the error of a failed exit has the end of both outputs.
func Run(ctx context.Context, s Spec) (string, error) {
	cmd, log, err := s.command(ctx)
	if err != nil {
		return "", err
	}
	defer log.Close()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	fmt.Fprintf(log, "$ %s %s\n%s\n", s.Path, strings.Join(s.Args, " "), append(out.Bytes(), errs.Bytes()...))
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.String(), fmt.Errorf("%s: %w\n%s", s.Name, err, tail(append(out.Bytes(), errs.Bytes()...), 40))
	}
	return out.String(), nil
}

func (s Spec) command(ctx context.Context) (*exec.Cmd, *os.File, error) {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	log, err := os.OpenFile(filepath.Join(s.Dir, s.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	path, args := s.Path, s.Args
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if len(s.Mounts) > 0 {
		attr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
		script := "set -e\nmount --make-rprivate /\nmount -t proc proc /proc\n" +
			strings.Join(s.Mounts, "\n") + "\nexec \"$0\" \"$@\"\n"
		path, args = "/bin/sh", append([]string{"-c", script, s.Path}, s.Args...)
	}
	if s.Netns != "" { // nsenter becomes the program: the process keeps its ID
		path, args = "nsenter", append([]string{"--net=" + s.Netns, "--", path}, args...)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = s.Dir
	cmd.SysProcAttr = attr
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.Dir, "TMPDIR=" + s.Dir}, s.Env...)
	return cmd, log, nil
}

// Wait waits until the process ends by itself. It returns nil when that was with
// code 0, and kills the process when ctx ends first.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.exited()
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("%s did not end by itself: %w", p.name, ctx.Err())
	}
}

// ID is the process's ID.
func (p *Process) ID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// Stop asks the process to end by SIGTERM and waits. It errs when the process
// does not exit with code 0 within grace; it is killed then.
func (p *Process) Stop(grace time.Duration) error {
	select {
	case <-p.done:
		return p.exited()
	default:
	}
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.exited()
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s: did not end within %s of SIGTERM", p.name, grace)
	}
}

// Kill ends the process by SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// exited is the error of a process that has ended, nil when it exited with 0.
func (p *Process) exited() error {
	if p.err != nil {
		return fmt.Errorf("%s: %w", p.name, p.err)
	}
	return nil
}

// Tail is the last lines that the process has written.
func (p *Process) Tail(lines int) string { return Tail(p.log, lines) }

// Tail is the last lines of a log.
func Tail(file string, lines int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return tail(b, lines)
}

func tail(b []byte, lines int) string {
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}

// Ready waits until check returns nil, asking every few milliseconds. It errs
// when ctx ends or the process does, with the end of its log.
func (p *Process) Ready(ctx context.Context, check func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready: %w\n%s", p.name, errors.Join(p.err), p.Tail(40))
		case <-ctx.Done():
			return fmt.Errorf("%s was not ready in time: %w\n%s", p.name, err, p.Tail(40))
		case <-tick.C:
		}
	}
}

// Answers checks that GET url is answered with a status below 500 that is not
// 404, for Ready.
func Answers(url string) func(context.Context) error { return AnswersBy(http.DefaultClient, url) }

// AnswersBy is Answers by a client of the caller's, which may be in another network.
func AnswersBy(client *http.Client, url string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode >= 500 || resp.StatusCode == http.StatusNotFound {
			return fmt.Errorf("GET %s: %s", url, resp.Status)
		}
		return nil
	}
}

// lastPort is the port that FreeAddr gave last, counted from firstPort: no port is
// given twice by one process, for whoever got it may not listen on it yet.
var lastPort atomic.Uint32

// Ports below the range that the kernel gives to outgoing connections.
const (
	firstPort = 20000
	portCount = 12000
)

// FreeAddr returns a loopback address with a TCP port that nobody listens on and
// that this process was not given before. Processes start at different ports.
func FreeAddr() (string, error) {
	for range 200 {
		port := firstPort + (os.Getpid()*131+int(lastPort.Add(1)))%portCount
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", addr)
		if err == nil {
			l.Close()
			return addr, nil
		}
	}
	return "", fmt.Errorf("no free port between %d and %d on 127.0.0.1", firstPort, firstPort+portCount)
}
