package proxy

// EnsureCA makes the forward proxy's CA in dir if there is none, and returns the
// path of its certificate.
func EnsureCA(dir string) (certFile string, err error) {
	ca, err := openAuthority(dir)
	if err != nil {
		return "", err
	}
	return ca.certFile, nil
}
