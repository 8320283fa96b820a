/** Colours for a person at a terminal and for nobody else: neither a pipe, nor a file, nor a CI log. NO_COLOR is heeded. */
import picocolors from 'picocolors';

export const colours = picocolors.createColors(process.stdout.isTTY === true && !process.env.NO_COLOR);
