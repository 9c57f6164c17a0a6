package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"

	"github.com/damselfly-p2p/damselfly/dfget/fetch"
	"github.com/damselfly-p2p/damselfly/dfget/image"
	"github.com/damselfly-p2p/damselfly/dfget/layout"
	"github.com/damselfly-p2p/damselfly/dfget/partial"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Exit codes, as exitCodeHelp documents them.
const (
	exitOK          = 0
	exitOther       = 1
	exitUsage       = 2
	exitAuth        = 3
	exitNotFound    = 4
	exitOriginDown  = 5
	exitIntegrity   = 6
	exitNoSpace     = 7
	exitTimeout     = 8
	exitInterrupted = 130
)

// errTimeout is the cause of a context that --timeout ended.
var errTimeout = errors.New("the time given by --timeout is over")

// usageError is a command line that asks for what cannot be.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...)}
}

// toldError has been shown to the user already.
type toldError struct{ code int }

func (e *toldError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// failure is what a user is told of an error, and the "error" of the JSON
// output.
type failure struct {
	Code    int    `json:"exitCode"`
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// print writes f for people. what says what was being done.
func (f failure) print(p *process, what string) {
	if what != "" {
		what += ": "
	}
	fmt.Fprintf(p.Err, "dfget: %s%s\n", what, f.Message)
	if f.Hint != "" {
		fmt.Fprintf(p.Err, "  %s\n", f.Hint)
	}
}

// explain says what err means to a user whose command ran under ctx.
func explain(ctx context.Context, err error) failure {
	var usage *usageError
	var status *origin.StatusError
	var platform *image.PlatformError
	var noDaemon *noDaemonError
	var daemon *daemonError
	var noStore *noStoreError
	var notHeld *notHeldError
	f := failure{Message: err.Error()}
	switch {
	case errors.As(err, &usage):
		f.Code, f.Kind, f.Hint = exitUsage, "usage", usage.hint
	case errors.As(err, &daemon):
		f.Code, f.Kind = config.ExitCode(err), "other"
	case ctx.Err() != nil:
		f = failure{Code: exitInterrupted, Kind: "interrupted", Message: "interrupted"}
	case errors.As(err, &noDaemon):
		f.Code, f.Kind, f.Hint = exitOriginDown, "no-daemon", "start it (dfget daemon), name its address by --mirror, or leave out --mirror-only"
	case errors.As(err, &noStore):
		f.Code, f.Kind, f.Hint = exitOther, "no-store", noStore.hint
	case errors.As(err, &notHeld):
		f.Code, f.Kind, f.Hint = exitNotFound, "not-found", "dfget cache ls --no-trunc shows all that it has"
	case errors.Is(err, errTimeout):
		f.Code, f.Kind, f.Hint = exitTimeout, "timeout", "give it more time by --timeout; the same command goes on where it stopped"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.Code, f.Kind, f.Hint = exitNoSpace, "no-space", "free some space, then the same command goes on where it stopped"
	case errors.Is(err, blob.ErrMismatch), errors.Is(err, origin.ErrSize):
		f.Code, f.Kind, f.Hint = exitIntegrity, "integrity", "nothing was kept; check the digest, or whether something between here and the origin changes what it passes on"
	case errors.Is(err, origin.ErrCredentials):
		f.Code, f.Kind, f.Hint = exitOther, "credentials", "mend that file or helper, or name another directory by DOCKER_CONFIG"
	case errors.As(err, &status):
		f.explainStatus(status)
	case errors.As(err, &platform):
		f.Code, f.Kind, f.Hint = exitNotFound, "not-found", "name one of these by --platform, or keep all by --all-platforms"
	case errors.Is(err, origin.ErrStalled), errors.Is(err, context.DeadlineExceeded):
		f.Code, f.Kind, f.Hint = exitTimeout, "timeout", "the same command goes on where it stopped"
	case errors.Is(err, fetch.ErrUnusable):
		f.Code, f.Kind, f.Hint = exitOther, "other", "leave out --mirror-only, so that the origin may be read directly"
	default:
		f.explainOther(err)
	}
	return f
}

func (f *failure) explainStatus(e *origin.StatusError) {
	registry := e.Ref.Registry
	switch {
	case e.Code == http.StatusUnauthorized, e.Code == http.StatusForbidden, e.Code == http.StatusProxyAuthRequired:
		f.Code, f.Kind = exitAuth, "auth"
		f.Hint = "it wants a credential that opens it: docker login " + registry + " (some registries answer so for what does not exist, too)"
		if registry == "" {
			f.Hint = `it wants a credential: --header "Authorization: ..."`
		}
	case e.Code == http.StatusNotFound, e.Code == http.StatusGone:
		f.Code, f.Kind, f.Hint = exitNotFound, "not-found", "check the name, the tag and the digest"
	case e.Code == http.StatusTooManyRequests:
		f.Code, f.Kind, f.Hint = exitOriginDown, "origin-down", "its rate limit is used up; wait, or log in for a higher one"
	case e.Code >= 500, e.Code == http.StatusRequestTimeout:
		f.Code, f.Kind, f.Hint = exitOriginDown, "origin-down", "try again later; the same command goes on where it stopped"
	default:
		f.Code, f.Kind = exitOther, "other"
	}
}

func (f *failure) explainOther(err error) {
	var source *fetch.SourceError
	var unknownCA x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unknownCA):
		f.Code, f.Kind, f.Hint = exitOriginDown, "origin-down", "name the CA that signed its certificate: --ca FILE"
	case errors.As(err, &verify):
		f.Code, f.Kind, f.Hint = exitOriginDown, "origin-down", "its certificate is not valid for it"
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		f.Code, f.Kind, f.Hint = exitOriginDown, "origin-down", "it does not speak TLS; for a test registry: --plain-http"
	case errors.As(err, &source):
		f.Code, f.Kind, f.Hint = exitOriginDown, "origin-down", "check the name and the network; the same command goes on where it stopped"
	case errors.Is(err, partial.ErrBusy):
		f.Code, f.Kind, f.Hint = exitOther, "busy", "wait for it, or name another PATH"
	case errors.Is(err, partial.ErrRefused), errors.Is(err, layout.ErrTaken):
		f.Code, f.Kind, f.Hint = exitOther, "refused", "name another PATH"
	default:
		f.Code, f.Kind = exitOther, "other"
	}
}

// encodeJSON writes v as one line.
func encodeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
