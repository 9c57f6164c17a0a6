package origin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/time/rate"
)

// Fault answers a request in place of next, or changes what next answers.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Blob matches GETs of the blob with the digest, for Rule.
func Blob(digest string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		kind, reference := classify(r)
		return kind == blob && reference == digest && r.Method == http.MethodGet
	}
}

// Repository matches every request about the repository, for Rule.
func Repository(name string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/v2/"+name+"/") }
}

// Status answers with an error of the registry API. header holds names and
// values by turns.
func Status(code int, header ...string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		name := strings.ToUpper(strings.ReplaceAll(http.StatusText(code), " ", ""))
		_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"injected"}]}`, name)
	}
}

// Cut closes the connection after n bytes of the body, with a Content-Length
// that promised more.
func Cut(n int64) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		left := n
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, write: func(w http.ResponseWriter, b []byte) (int, error) {
			if int64(len(b)) < left {
				left -= int64(len(b))
				return w.Write(b)
			}
			part := b[:left]
			left = 0
			if _, err := w.Write(part); err != nil {
				return 0, err
			}
			if err := http.NewResponseController(w).Flush(); err != nil {
				return 0, err
			}
			return len(part), errCut
		}}, r)
	}
}

var errCut = errors.New("connection cut by the test")

// Flip changes one bit of the body's byte at offset off.
func Flip(off int64) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		at := off
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, write: func(w http.ResponseWriter, b []byte) (int, error) {
			if at >= 0 && at < int64(len(b)) {
				b = append([]byte(nil), b...)
				b[at] ^= 1
			}
			at -= int64(len(b))
			return w.Write(b)
		}}, r)
	}
}

// IgnoreRange answers as if no range had been asked for.
func IgnoreRange(w http.ResponseWriter, r *http.Request, next http.Handler) {
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	next.ServeHTTP(w, r)
}

// Slow sends bodies at no more than limiter allows, which all of them share.
func Slow(limiter *rate.Limiter) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, write: func(w http.ResponseWriter, b []byte) (int, error) {
			var done int
			for done < len(b) {
				part := b[done:min(len(b), done+limiter.Burst())]
				if err := limiter.WaitN(r.Context(), len(part)); err != nil {
					return done, err
				}
				n, err := w.Write(part)
				done += n
				if err == nil {
					err = http.NewResponseController(w).Flush()
				}
				if err != nil {
					return done, err
				}
			}
			return done, nil
		}}, r)
	}
}

// Rate is a limiter of bytes a second for Slow.
func Rate(bytesPerSecond int) *rate.Limiter {
	// A burst of 20 ms bears timers that fire a little late.
	return rate.NewLimiter(rate.Limit(bytesPerSecond), max(32<<10, bytesPerSecond/50))
}

// Hold lets n bytes of the body pass and the rest only after release is closed.
func Hold(n int64, release <-chan struct{}) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		left := n
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, write: func(w http.ResponseWriter, b []byte) (int, error) {
			first := min(int64(len(b)), left)
			left -= first
			if _, err := w.Write(b[:first]); err != nil {
				return 0, err
			}
			if first == int64(len(b)) {
				return len(b), nil
			}
			if err := http.NewResponseController(w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return 0, err
			}
			select {
			case <-release:
			case <-r.Context().Done():
				return 0, context.Cause(r.Context())
			}
			n, err := w.Write(b[first:])
			return int(first) + n, err
		}}, r)
	}
}

// bodyWriter replaces Write.
type bodyWriter struct {
	http.ResponseWriter
	write func(w http.ResponseWriter, b []byte) (int, error)
}

func (w *bodyWriter) Write(b []byte) (int, error) { return w.write(w.ResponseWriter, b) }

func (w *bodyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
