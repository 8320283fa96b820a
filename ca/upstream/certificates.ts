/** Certificates that others gave us, in PEM. */
import { CountersignError } from '../../src/base/errors.ts';
import { type Certificate, parseCertificate } from '../../src/pki/certificate.ts';
import { decodePem } from '../../src/pki/pem.ts';

const MAX_CERTIFICATES = 16;

/** One at least. @throws CountersignError bad-input naming the first that is none. */
export function certificatesOf(pem: string): Certificate[] {
  const ders = decodePem(pem, 'CERTIFICATE');
  if (ders.length > MAX_CERTIFICATES) {
    throw new CountersignError('bad-input', `${ders.length} certificates; at most ${MAX_CERTIFICATES} are taken`);
  }
  return ders.map((der, i) => {
    const parsed = parseCertificate(der);
    if (!parsed.ok) throw new CountersignError('bad-input', `certificate ${i + 1} does not parse as RFC 5280 wants it`);
    return parsed.value;
  });
}

/** Issuer and subject are one, as of a root (RFC 5280, section 3.2). */
export function isSelfIssued(certificate: Certificate): boolean {
  return certificate.subjectDer.equals(certificate.issuerDer);
}
