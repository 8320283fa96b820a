/** A log that says nothing, and costs nothing. */
import { createLogger } from '../../src/base/log.ts';

export const SILENT = createLogger('sim', 'silent');
