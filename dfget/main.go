// Command dfget fetches files, blobs and whole images through the peer-to-peer
// daemon of this machine, or straight from their origin where none runs.
//
// The commands get and pull are clients: they verify every byte against its
// digest themselves and write files as the user who calls them.
package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	// The umask can be read only by setting it, so this comes before anything
	// that makes files.
	umask := unix.Umask(0o077)
	unix.Umask(umask)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], process{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv, Umask: fs.FileMode(umask) & fs.ModePerm,
	}))
}

// process is what a command sees of the world around it.
type process struct {
	In    io.Reader
	Out   io.Writer
	Err   io.Writer
	Env   func(name string) string
	Umask fs.FileMode
	// Pause is the wait before a failed request is tried again, which doubles with
	// each try; 0 = that of package fetch.
	Pause time.Duration
}

// run executes the command line args, until it is done or ctx ends, and returns
// the exit code.
func run(ctx context.Context, args []string, p process) int {
	root := newRoot(&p)
	root.SetArgs(args)
	root.SetIn(p.In)
	root.SetOut(p.Out)
	root.SetErr(p.Err)
	err := root.ExecuteContext(ctx)
	var told *toldError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &told):
		return told.code
	}
	f := explain(ctx, err)
	f.print(&p, "")
	return f.Code
}
