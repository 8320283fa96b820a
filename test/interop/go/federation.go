package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
)

// fetchBundle [trust domain] [URL] [endpoint's SPIFFE ID, or "web"] [file: its bundle, or the web's authority] [JWT-SVID and audience]
// asks a bundle endpoint, and judges the JWT-SVID by the bundle that came.
func fetchBundle(ctx context.Context, _ string, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	trustDomain, err := spiffeid.TrustDomainFromString(args[0])
	if err != nil {
		return err
	}
	option, err := authentication(args[2], args[3])
	if err != nil {
		return err
	}
	bundle, err := federation.FetchBundle(ctx, trustDomain, args[1], option)
	if err != nil {
		return err
	}
	sequence, _ := bundle.SequenceNumber()
	hint, _ := bundle.RefreshHint()
	said := map[string]any{
		"x509":     len(bundle.X509Authorities()),
		"jwt":      len(bundle.JWTAuthorities()),
		"sequence": fmt.Sprint(sequence),
		"hint":     hint.Seconds(),
	}
	if len(args) > 5 {
		svid, err := jwtsvid.ParseAndValidate(args[4], bundle, []string{args[5]})
		if err != nil {
			return err
		}
		said["id"] = svid.ID.String()
	}
	say(said)
	return nil
}

func authentication(endpoint, file string) (federation.FetchOption, error) {
	if endpoint == "web" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		return federation.WithWebPKIRoots(roots), nil
	}
	id, err := spiffeid.FromString(endpoint)
	if err != nil {
		return nil, err
	}
	trusted, err := spiffebundle.Load(id.TrustDomain(), file)
	if err != nil {
		return nil, err
	}
	return federation.WithSPIFFEAuth(trusted, id), nil
}

// serveBundle [trust domain] [bundle file] [certificate file] [key file] is a bundle endpoint until its standard input ends.
func serveBundle(ctx context.Context, _ string, args []string) error {
	trustDomain, err := spiffeid.TrustDomainFromString(args[0])
	if err != nil {
		return err
	}
	bundle, err := spiffebundle.Load(trustDomain, args[1])
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(args[2], args[3])
	if err != nil {
		return err
	}
	handler, err := federation.NewHandler(trustDomain, bundle)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	say(map[string]any{"port": listener.Addr().(*net.TCPAddr).Port})
	<-untilStdinEnds(ctx).Done()
	return server.Close()
}
