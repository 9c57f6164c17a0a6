package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/damselfly-p2p/damselfly/pkg/config"
)

// far is the far end as this process sees it.
type far struct {
	hello
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *json.Decoder
}

// startFar starts this program again as the far end and waits until it serves a blob
// of size bytes. profile is a file for its CPU profile, or "".
func startFar(ctx context.Context, dir string, size int64, profile string) (*far, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "far", "--dir", dir, "--size", config.Bytes(size).String(), "--profile", profile)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	// A group of its own: Ctrl-C at a terminal reaches the near end alone, which ends it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the other end: %w", err)
	}
	f := &far{cmd: cmd, in: in, answers: json.NewDecoder(out)}
	if err := f.answers.Decode(&f.hello); err != nil {
		return nil, errors.Join(fmt.Errorf("the other end did not begin: %w", err), f.close())
	}
	return f, nil
}

// heap is what the far end has allocated.
func (f *far) heap() (h heap, err error) {
	if _, err := io.WriteString(f.in, "{}\n"); err != nil {
		return h, err
	}
	return h, f.answers.Decode(&h)
}

func (f *far) pid() int { return f.cmd.Process.Pid }

// close ends the far end: it stops when nobody can ask any more.
func (f *far) close() error { return errors.Join(f.in.Close(), f.cmd.Wait()) }
